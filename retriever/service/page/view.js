// Turns answers into elements. All text goes in as text nodes: nothing a passage holds is markup.

const MODE_NAMES = { bm25: "BM25", hybrid: "Hybrid", reranked: "Reranked", cross: "Cross-scored" };
const STAGE_NAMES = { bm25: "BM25", dense: "Tower", rerank: "Rerank", cross: "Cross" };
const STEP_NAMES = { payload: "passages" };

// A query with a smaller chance of an answer gets a word of doubt.
const UNLIKELY = 0.2;

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const modeName = (mode) => MODE_NAMES[mode] ?? mode;
export const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
export const total = (timings) => Object.values(timings).reduce((sum, ms) => sum + ms, 0);

// Only addresses that lead to a page become links; javascript: and the like stay text.
export function safeLink(url) {
  try {
    const parsed = new URL(url);
    return ["http:", "https:"].includes(parsed.protocol) ? parsed.href : null;
  } catch {
    return null;
  }
}

// With `other`, each hit says whether the other list has it, and with `isSecond` how far it moved.
export function column({ title, answer, other, isSecond, back, about, actions }) {
  const spans = scoreSpans(answer.hits);
  const ranks = other && new Map(other.hits.map((hit) => [hit.passage_id, hit.rank]));
  const hits = answer.hits.map((hit, at) =>
    card({ hit, at, spans, badge: moved(hit, ranks, isSecond), about, actions, queryId: answer.query_id }));
  const list = hits.length
    ? element("ol", { class: "hits" }, ...hits)
    : element("p", { class: "none" }, "No passage passes. Try other words or fewer filters.");
  const doubt = (answer.answerable ?? 1) < UNLIKELY
    ? element("p", { class: "none" }, `Probably nothing here answers that: the chance is ${Math.round(answer.answerable * 100)}%.`)
    : null;
  const readAs = Object.entries(answer.read_as ?? {});
  const reading = readAs.length
    ? element("p", { class: "reading" }, "No passage has ", readAs.map(([typed]) => `“${typed}”`).join(", "),
      "; searched for ", element("b", {}, readAs.map(([, near]) => near).join(", ")))
    : null;
  const count = element("small", {}, `${hits.length} ${hits.length === 1 ? "hit" : "hits"}`);
  return element("section", { class: "column", "aria-label": title },
    element("div", { class: "head" }, element("h2", {}, title, " ", count), timings(answer),
      back ? element("button", { type: "button", class: "back", onclick: back }, "← Back") : null), reading, doubt, list);
}

function timings(answer) {
  if (!answer.timings_ms) return null;
  const sum = total(answer.timings_ms);
  const steps = Object.entries(answer.timings_ms);
  const bar = element("span", { class: "steps", "aria-hidden": "true" });
  for (const [step, ms] of steps) {
    const part = element("i", { class: `step step-${step}` });
    part.style.flexGrow = ms / (sum || 1);
    bar.append(part);
  }
  const words = steps.map(([step, ms]) =>
    element("span", { class: `step-name step-${step}` }, `${STEP_NAMES[step] ?? step} ${ms.toFixed(1)}`));
  const skipped = answer.skipped?.length ? element("b", {}, `skipped: ${answer.skipped.join(", ")}`) : null;
  return element("div", { class: "timings" }, element("strong", {}, milliseconds(sum)), bar,
    element("span", { class: "step-names" }, ...words), skipped);
}

// Bars begin at 0, or at the lowest score where that is below: a cross-scorer's logits may all be.
function scoreSpans(hits) {
  const spans = {};
  for (const hit of hits)
    for (const [stage, { score }] of Object.entries(hit.stages)) {
      const { low, high } = spans[stage] ?? { low: 0, high: -Infinity };
      spans[stage] = { low: Math.min(low, score), high: Math.max(high, score) };
    }
  return spans;
}

function card({ hit, at, spans, badge, about, actions, queryId }) {
  const clicked = () => queryId && actions.report("click", hit, queryId);
  const link = safeLink(hit.url);
  const untitled = !hit.marked_title.length;
  const title = untitled ? [`passage ${hit.passage_id}`] : marked(hit.marked_title);
  const heading = link ? element("a", { href: link, rel: "noreferrer", onclick: clicked }, ...title) : element("span", {}, ...title);
  return element("li", {},
    element("article", { class: "hit", tabindex: at ? "-1" : "0", "data-passage": hit.passage_id },
      element("div", { class: "body" },
        element("h3", { class: untitled ? "untitled" : null }, element("span", { class: "rank" }, String(hit.rank)), heading, badge),
        hit.url && hit.url !== hit.title ? element("p", { class: "url" }, hit.url) : null,
        element("p", { class: "snippet" }, ...marked(hit.snippet)),
        element("div", { class: "foot" }, ...fieldButtons(hit, about, actions),
          Object.keys(about.modes).length > 1  // BM25 alone has no neighbours
            ? element("button", { type: "button", class: "quiet", onclick: () => actions.similar(hit) }, "Similar") : null,
          queryId ? answers(() => actions.report("answers", hit, queryId)) : null,
          fullText(hit, about, clicked))),
      bars(hit, spans)));
}

function answers(report) {
  const button = element("button", { type: "button", class: "quiet answers", onclick: async () => {
    button.disabled = true;
    button.textContent = (await report()) ? "Thank you" : "That could not be kept";
  } }, "This answers it");
  return button;
}

function marked(segments) {
  return segments.map(({ text, is_match }) => (is_match ? element("mark", {}, text) : document.createTextNode(text)));
}

function moved(hit, ranks, isSecond) {
  if (!ranks) return null;
  const before = ranks.get(hit.passage_id);
  if (before === undefined) return element("span", { class: "moved new" }, "only here");
  if (before === hit.rank || !isSecond) return null;
  const places = Math.abs(before - hit.rank);
  const [kind, sign, way] = before > hit.rank ? ["up", "↑", "higher"] : ["down", "↓", "lower"];
  const words = `${places} places ${way} than in the other list`;
  return element("span", { class: `moved ${kind}`, title: words },
    element("span", { "aria-hidden": "true" }, sign + places),
    element("span", { class: "hidden" }, words));
}

function fieldButtons(hit, about, actions) {
  return Object.entries(hit.fields)
    .filter(([name, value]) => about.fields[name] && about.fields[name] !== "text" && typeof value !== "object")
    .map(([name, value]) =>
      element("button", { type: "button", class: "field", title: `Filter by ${name}`,
        onclick: () => actions.filter(name, value) }, element("span", {}, `${name} `), String(value)));
}

function fullText(hit, about, opened) {
  const where = element("p", { class: "point" }, "point ", element("code", {}, hit.point_id));
  if (about.dashboard) {
    const link = safeLink(`${about.dashboard}#/collections/${encodeURIComponent(about.collection)}`);
    if (link)
      where.append(" ", element("a", { href: link, target: "_blank", rel: "noreferrer", class: "dashboard",
        title: "Opens the collection; paste the point's id, which this copies, into its filter",
        onclick: () => navigator.clipboard?.writeText(`id:${hit.point_id}`).catch(() => {}) },
      "Qdrant dashboard ↗"));
  }
  const once = (event) => event.target.open && opened();
  return element("details", { ontoggle: once }, element("summary", {}, "Whole passage"),
    element("p", { class: "text" }, hit.text), where);
}

// What the cross-scorer read has a calibrated score: its log-odds of being an answer. Without one,
// a calibration of the collection may say the chance.
function chance(hit) {
  if (!hit.stages.cross && !hit.stages.chance) return element("span", {});
  const percent = 100 * (hit.stages.cross ? 1 / (1 + Math.exp(-hit.score)) : hit.stages.chance.score);
  const shown = percent < 0.1 ? "<0.1" : percent.toFixed(percent < 10 ? 1 : 0);
  return element("span", { class: "chance", title: "estimated chance that this answers" }, `${shown}%`);
}

function bars(hit, spans) {
  const read = Object.entries(hit.stages).filter(([stage]) => stage !== "chance");
  const rows = read.map(([stage, { score, rank }]) => {
    const fill = element("i", {});
    const { low, high } = spans[stage];
    fill.style.width = `${high > low ? (100 * (score - low)) / (high - low) : 0}%`;
    return element("div", { class: `stage stage-${stage.replace(/\W/g, "")}` },
      element("dt", {}, STAGE_NAMES[stage] ?? stage),
      element("dd", {}, element("span", { class: "bar", "aria-hidden": "true" }, fill),
        element("span", { class: "score" }, score.toFixed(Math.abs(score) < 1 ? 3 : 2)),
        element("span", { class: "place", title: `rank ${rank} in this stage` }, `#${rank}`)));
  });
  const sum = element("div", { class: "stage sum" }, element("dt", {}, hit.stages.cross || hit.stages.chance ? "Chance" : "Score"),
    element("dd", {}, chance(hit), element("span", { class: "score" }, hit.score.toFixed(2))));
  return element("dl", { class: "stages", "aria-label": "Why this is here" }, ...rows, sum);
}
