// The page: what is asked (also kept in its address), asking it, and the keyboard.

import * as api from "./api.js";
import * as filters from "./filters.js";
import { column, element, milliseconds, modeName, total } from "./view.js";

const TYPING_MS = 160;
const AMOUNTS = [5, 10, 20, 50];
const COUNTED = ["keyword", "integer", "bool", "uuid"];
const TRY_AGAIN = [0, 429, 503, 504];
const by = (id) => document.getElementById(id);
const on = (id, event, listener) => by(id).addEventListener(event, listener);

const asked = { query: "", mode: null, other: null, filter: {}, amount: 10 };
let about = null;
let running = null;
let timer = 0;

function readAddress() {
  const address = new URLSearchParams(location.search);
  const known = (mode) => (Object.hasOwn(about.modes, mode) ? mode : null);
  asked.query = address.get("q") ?? "";
  asked.mode = known(address.get("mode")) ?? defaultMode();
  asked.other = known(address.get("compare"));
  asked.amount = AMOUNTS.find((amount) => amount === Number(address.get("k"))) ?? 10;
  try {
    const filter = JSON.parse(address.get("filter") ?? "{}");
    asked.filter = filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {};
  } catch {
    asked.filter = {};
  }
}

function writeAddress() {
  const address = new URLSearchParams();
  if (asked.query) address.set("q", asked.query);
  if (asked.mode !== defaultMode()) address.set("mode", asked.mode);
  if (asked.other) address.set("compare", asked.other);
  if (asked.amount !== 10) address.set("k", asked.amount);
  if (Object.keys(asked.filter).length) address.set("filter", JSON.stringify(asked.filter));
  history.replaceState(null, "", address.size ? `?${address}` : location.pathname);
}

const defaultMode = () => Object.keys(about.modes).at(-1);

// A name for this tab, for a service that keeps a log; it has no other.
function person() {
  if (!about.keeps_log) return {};
  let own = sessionStorage.getItem("two-tower-search tab");
  if (!own) {
    own = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
    sessionStorage.setItem("two-tower-search tab", own);
  }
  return { client_id: own };
}

const limits = () => ({ k: Math.min(asked.amount, about.most_hits), filter: asked.filter });

async function run() {
  clearTimeout(timer);
  running?.abort();
  writeAddress();
  showFilters();
  by("welcome").hidden = Boolean(asked.query.trim());
  if (!asked.query.trim()) {
    running = null;
    clearProblem();
    show("");
    return;
  }
  const modes = asked.other ? [asked.mode, asked.other] : [asked.mode];
  await attempt(async (signal) => {
    const answers = await Promise.all(modes.map((mode) =>
      api.search({ query: asked.query, ...limits(), settings: about.modes[mode], ...person() }, signal)));
    const words = answers.map((answer, at) =>
      `${modeName(modes[at])}: ${answer.hits.length} hits in ${milliseconds(total(answer.timings_ms))}`);
    show(words.join(" · "), ...answers.map((answer, at) => column({ title: modeName(modes[at]), answer,
      other: answers[1 - at], isSecond: at === 1, about, actions })));
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
    if (error.name !== "AbortError" && running === control) showProblem(error, again);
  } finally {
    if (running === control) document.body.classList.remove("busy");
  }
}

const actions = {
  filter(name, value) {
    const condition = ["keyword", "uuid"].includes(about.fields[name]) ? [value] : value;
    asked.filter = { ...asked.filter, [name]: condition };
    run();
  },
  // What somebody does with a hit; that it cannot be kept is nobody's problem here.
  report(action, hit, queryId) {
    const event_attributes = { object: { object_id: hit.passage_id }, position: { ordinal: hit.rank } };
    return api.report({ action_name: action, query_id: queryId, event_attributes, ...person() }).then(() => true, () => false);
  },
  similar(hit) {
    const name = hit.title || hit.passage_id;
    attempt(async (signal) => {
      const answer = await api.similar({ passage_id: hit.passage_id, ...limits() }, signal);
      show(`${answer.hits.length} passages like ${name}`,
        column({ title: `Similar to ${name}`, answer, back: run, about, actions }));
      window.scrollTo({ top: 0 });
    }, () => actions.similar(hit));
  },
};

function show(status, ...columns) {
  by("status").textContent = status;
  by("columns").replaceChildren(...columns);
  by("columns").classList.toggle("two", columns.length > 1);
}

function showProblem(problem, again) {
  show("");
  by("key-form").hidden = problem.status !== 401;
  if (problem.status === 401) by("key").focus();
  const passing = TRY_AGAIN.includes(problem.status);
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

// Offers the values of the chosen field, with how many passages have each where they are counted.
async function offerValues() {
  const field = by("field").value;
  by("values").replaceChildren();
  if (!COUNTED.includes(about.fields[field])) return;
  const answer = await api.values(field).catch(() => ({ values: [] })); // a filter can be typed without
  if (by("field").value !== field) return;
  by("values").append(...answer.values.map(({ value, passages }) =>
    element("option", { value: String(value), label: `${value} (${passages.toLocaleString("en")})` })));
}

function showControls() {
  const modes = Object.keys(about.modes), fields = Object.keys(about.fields);
  const option = (value, selected, name = value) => element("option", { value, selected }, String(name));
  by("modes").append(...modes.map((mode) => element("label", {},
    element("input", { type: "radio", name: "mode", value: mode, checked: mode === asked.mode }),
    element("span", {}, modeName(mode)))));
  by("modes").hidden = document.querySelector(".compare").hidden = modes.length < 2;
  const other = asked.other ?? modes.find((mode) => mode !== asked.mode);
  by("other").append(...modes.map((mode) => option(mode, mode === other, modeName(mode))));
  by("compare").checked = Boolean(asked.other);
  by("amount").append(...AMOUNTS.filter((n) => n <= about.most_hits).map((n) => option(n, n === asked.amount)));
  by("field").append(...fields.map((name) => option(name, false)));
  by("show-filter").hidden = !fields.length;
  showForm();
  by("examples").replaceChildren(...about.examples.map((text) => element("li", {},
    element("button", { type: "button", onclick: () => { setQuery(text); by("query").focus(); } }, text))));
}

function showForm() {
  offerValues();
  by("form").textContent = filters.FORMS[about.fields[by("field").value]] ?? "value";
}

function setQuery(text) {
  by("query").value = asked.query = text;
  run();
}

function listen() {
  on("query", "input", () => {
    asked.query = by("query").value;
    clearTimeout(timer);
    timer = setTimeout(run, TYPING_MS);
  });
  on("search", "submit", () => setQuery(by("query").value));
  on("modes", "change", (event) => { asked.mode = event.target.value; run(); });
  const compare = () => { asked.other = by("compare").checked ? by("other").value : null; run(); };
  on("compare", "change", compare);
  on("other", "change", () => { by("compare").checked = true; compare(); });
  on("amount", "change", (event) => { asked.amount = Number(event.target.value); run(); });
  on("field", "change", showForm);
  on("show-filter", "click", () => {
    const isOpen = by("filter").hidden;
    by("filter").hidden = !isOpen;
    by("show-filter").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) by("value").focus();
  });
  on("filter", "submit", addFilter);
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
  const { key, target } = event;
  const inQuery = target === by("query");
  const hit = target.closest?.(".hit");
  if (key === "/" && !target.matches("input, select, textarea")) focusQuery(event);
  else if (key === "Escape" && inQuery) setQuery("");
  else if (key === "Escape") focusQuery(event);
  else if (key === "ArrowDown" && inQuery) focus(event, document.querySelector(".hit"));
  else if (key === "Enter" && hit && target === hit) open(hit);
  else if (key.startsWith("Arrow") && hit) focus(event, neighbour(hit, key));
}

function neighbour(hit, key) {
  const columns = [...document.querySelectorAll(".column")].map((one) => [...one.querySelectorAll(".hit")]);
  const at = columns.findIndex((hits) => hits.includes(hit));
  const row = columns[at].indexOf(hit);
  if (key === "ArrowUp") return row ? columns[at][row - 1] : by("query");
  if (key === "ArrowDown") return columns[at][row + 1];
  return columns[at + (key === "ArrowRight" ? 1 : -1)]?.[row];
}

function focus(event, target) {
  if (!target) return;
  event.preventDefault();
  target.focus();
}

function focusQuery(event) {
  focus(event, by("query"));
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
    by("kept").hidden = !about.keeps_log;
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

on("key-form", "submit", (event) => {
  event.preventDefault();
  api.rememberKey(by("key").value.trim());
  if (about) run();
  else start();
});
on("search", "submit", (event) => event.preventDefault());
start();
