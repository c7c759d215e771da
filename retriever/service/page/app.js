// The page: what is asked (also kept in its address), asking it, and the keyboard.

import * as api from "./api.js";
import * as filters from "./filters.js";
import { column, element, milliseconds, modeName, total } from "./view.js";

const TYPING_MS = 160;
const AMOUNTS = [5, 10, 20, 50];
const by = (id) => document.getElementById(id);

const asked = { query: "", mode: null, other: null, filter: {}, amount: 10 };
let about = null;
let running = null;
let timer = 0;

function readAddress() {
  const given = new URLSearchParams(location.search);
  const modes = Object.keys(about.modes);
  const known = (mode) => (modes.includes(mode) ? mode : null);
  asked.query = given.get("q") ?? "";
  asked.mode = known(given.get("mode")) ?? modes.at(-1);
  asked.other = known(given.get("compare"));
  asked.amount = AMOUNTS.includes(Number(given.get("k"))) ? Number(given.get("k")) : 10;
  try {
    const filter = JSON.parse(given.get("filter") ?? "{}");
    asked.filter = filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {};
  } catch {
    asked.filter = {};
  }
}

function writeAddress() {
  const kept = new URLSearchParams();
  if (asked.query) kept.set("q", asked.query);
  if (asked.mode !== Object.keys(about.modes).at(-1)) kept.set("mode", asked.mode);
  if (asked.other) kept.set("compare", asked.other);
  if (asked.amount !== 10) kept.set("k", asked.amount);
  if (Object.keys(asked.filter).length) kept.set("filter", JSON.stringify(asked.filter));
  history.replaceState(null, "", kept.size ? `?${kept}` : location.pathname);
}

function body(mode) {
  const settings = about.modes[mode];
  return {
    query: asked.query,
    k: Math.min(asked.amount, about.most_hits),
    filter: Object.keys(asked.filter).length ? asked.filter : null,
    settings: Object.keys(settings).length ? settings : null,
  };
}

async function run() {
  clearTimeout(timer);
  running?.abort();
  writeAddress();
  showFilters();
  by("welcome").hidden = Boolean(asked.query.trim());
  if (!asked.query.trim()) {
    running = null;
    showStatus("");
    clearProblem();
    by("columns").replaceChildren();
    return;
  }
  const modes = asked.other ? [asked.mode, asked.other] : [asked.mode];
  await attempt(async (signal) => {
    const answers = await Promise.all(modes.map((mode) => api.search(body(mode), signal)));
    showAnswers(modes, answers);
  }, run);
}

// Runs a task that the next one replaces; shows what goes wrong and tries again where that may help.
async function attempt(task, again) {
  const control = new AbortController();
  running = control;
  document.body.classList.add("busy");
  try {
    await task(control.signal);
    if (running === control) clearProblem();
  } catch (error) {
    if (error.name === "AbortError" || running !== control) return;
    showProblem(error, again);
  } finally {
    if (running === control) document.body.classList.remove("busy");
  }
}

function showAnswers(modes, answers) {
  const view = answers.map((answer, at) => column({ title: modeName(modes[at]), answer,
    other: answers.length > 1 ? answers[1 - at] : null, isSecond: at === 1, about, actions }));
  by("columns").replaceChildren(...view);
  by("columns").classList.toggle("two", answers.length > 1);
  const words = answers.map((answer, at) =>
    `${modeName(modes[at])}: ${answer.hits.length} hits in ${milliseconds(total(answer.timings_ms))}`);
  showStatus(words.join(" · "));
  offerValues(answers[0].hits);
}

const actions = {
  filter(name, value) {
    const condition = ["keyword", "uuid"].includes(about.fields[name]) ? [value] : value;
    asked.filter = { ...asked.filter, [name]: condition };
    run();
  },
  similar(hit) {
    attempt(async (signal) => {
      const filter = Object.keys(asked.filter).length ? asked.filter : null;
      const k = Math.min(asked.amount, about.most_hits);
      const answer = await api.similar({ passage_id: hit.passage_id, k, filter }, signal);
      by("columns").replaceChildren(column({
        title: `Similar to ${hit.title || hit.passage_id}`, answer, back: run, about, actions }));
      by("columns").classList.remove("two");
      showStatus(`${answer.hits.length} passages like ${hit.title || hit.passage_id}`);
      window.scrollTo({ top: 0 });
    }, () => actions.similar(hit));
  },
};

function showStatus(words) {
  by("status").textContent = words;
}

function showProblem(problem, again) {
  by("columns").replaceChildren();
  showStatus("");
  by("key-form").hidden = problem.status !== 401;
  if (problem.status === 401) by("key").focus();
  const passing = [0, 429, 503, 504].includes(problem.status);
  const waitS = Math.max(1, problem.retryAfterS || 3);
  by("problem").hidden = false;
  by("problem").replaceChildren(
    element("strong", {}, passing ? "Not right now" : "That did not work"),
    element("p", {}, `${problem.message ?? problem}`),
    element("p", { class: "again" }, passing ? `Trying again every ${waitS} s. ` : "",
      element("button", { type: "button", onclick: again }, "Try again")));
  if (passing) timer = setTimeout(again, waitS * 1000);
}

function clearProblem() {
  by("problem").hidden = true;
  by("key-form").hidden = true;
}

function showFilters() {
  by("filters").replaceChildren(...Object.entries(asked.filter).map(([name, condition]) =>
    element("li", {}, element("button", { type: "button", "aria-label": `Remove filter ${name}`,
      onclick: () => { asked.filter = filters.remove(asked.filter, name); run(); } },
    element("span", {}, `${name} `), filters.show(condition), element("span", { "aria-hidden": "true" }, " ×")))));
}

function offerValues(hits) {
  const field = by("field").value;
  const values = new Set(hits.map((hit) => hit.fields[field] ?? hit[field]).filter((v) => typeof v === "string"));
  by("values").replaceChildren(...[...values].sort().map((value) => element("option", { value })));
}

function showControls() {
  const names = Object.keys(about.modes);
  by("modes").append(...names.map((mode) => element("label", {},
    element("input", { type: "radio", name: "mode", value: mode, checked: mode === asked.mode }),
    element("span", {}, modeName(mode)))));
  const other = asked.other ?? names.find((mode) => mode !== asked.mode);
  by("other").append(...names.map((mode) => element("option", { value: mode, selected: mode === other }, modeName(mode))));
  by("compare").checked = Boolean(asked.other);
  by("amount").append(...AMOUNTS.filter((n) => n <= about.most_hits)
    .map((n) => element("option", { value: n, selected: n === asked.amount }, String(n))));
  by("field").append(...Object.keys(about.fields).map((name) => element("option", { value: name }, name)));
  by("show-filter").hidden = !Object.keys(about.fields).length;
  showForm();
  by("examples").replaceChildren(...about.examples.map((text) => element("li", {},
    element("button", { type: "button", onclick: () => { setQuery(text); by("query").focus(); } }, text))));
}

function showForm() {
  by("form").textContent = filters.FORMS[about.fields[by("field").value]] ?? "value";
}

function setQuery(text) {
  by("query").value = text;
  asked.query = text;
  run();
}

function listen() {
  by("query").addEventListener("input", () => {
    asked.query = by("query").value;
    clearTimeout(timer);
    timer = setTimeout(run, TYPING_MS);
  });
  by("search").addEventListener("submit", (event) => { event.preventDefault(); setQuery(by("query").value); });
  by("modes").addEventListener("change", (event) => { asked.mode = event.target.value; run(); });
  const compare = () => { asked.other = by("compare").checked ? by("other").value : null; run(); };
  by("compare").addEventListener("change", compare);
  by("other").addEventListener("change", () => { by("compare").checked = true; compare(); });
  by("amount").addEventListener("change", (event) => { asked.amount = Number(event.target.value); run(); });
  by("field").addEventListener("change", showForm);
  by("show-filter").addEventListener("click", () => {
    by("filter").hidden = !by("filter").hidden;
    by("show-filter").setAttribute("aria-expanded", String(!by("filter").hidden));
    if (!by("filter").hidden) by("value").focus();
  });
  by("filter").addEventListener("submit", addFilter);
  document.addEventListener("keydown", onKey);
}

function addFilter(event) {
  event.preventDefault();
  const field = by("field").value;
  const condition = filters.parse(about.fields[field], by("value").value);
  by("value").setAttribute("aria-invalid", String(condition === null));
  if (condition === null) return;
  asked.filter = filters.add(asked.filter, field, condition);
  by("value").value = "";
  run();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input, select, textarea");
  const hit = event.target.closest?.(".hit");
  if (event.key === "/" && !inField) focusQuery(event);
  else if (event.key === "Escape" && event.target === by("query")) setQuery("");
  else if (event.key === "Escape") focusQuery(event);
  else if (event.key === "ArrowDown" && event.target === by("query")) focusHit(event, document.querySelector(".hit"));
  else if (hit && event.key === "Enter" && event.target === hit) open(hit);
  else if (hit && event.key.startsWith("Arrow")) focusHit(event, neighbour(hit, event.key));
}

function neighbour(hit, key) {
  const columns = [...document.querySelectorAll(".column")].map((one) => [...one.querySelectorAll(".hit")]);
  const at = columns.findIndex((hits) => hits.includes(hit));
  const row = columns[at].indexOf(hit);
  if (key === "ArrowUp") return row ? columns[at][row - 1] : by("query");
  if (key === "ArrowDown") return columns[at][row + 1];
  return columns[at + (key === "ArrowRight" ? 1 : -1)]?.[row];
}

function focusHit(event, target) {
  if (!target) return;
  event.preventDefault();
  target.focus();
}

function focusQuery(event) {
  event.preventDefault();
  by("query").focus();
  by("query").select();
}

function open(hit) {
  const link = hit.querySelector("h3 a");
  if (link) link.click();
  else hit.querySelector("details").toggleAttribute("open");
}

async function start() {
  await attempt(async (signal) => {
    about = await api.describe(signal);
    document.title = `Search ${about.name}`;
    by("name").textContent = about.name;
    by("size").textContent = `${about.passages.toLocaleString("en")} passages`;
    readAddress();
    showControls();
    listen();
    by("query").value ||= asked.query;
    asked.query = by("query").value;
    if (!asked.query) by("query").focus();
  }, start);
  if (about) await run();
}

by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.rememberKey(by("key").value.trim());
  if (about) run();
  else start();
});
by("search").addEventListener("submit", (event) => event.preventDefault());
start();
