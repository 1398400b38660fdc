"use strict";
// The leaderboard. What comes from records is put on the page as text, never as HTML.
const { entries, parts } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CHOICES = ["task", "model", "scheme", "budget"];
const schemes = [...new Set(entries.map((e) => e.scheme))].sort();
const colour = (e) => `var(--c${schemes.indexOf(e.scheme) % 7})`;
const MISSING = "—";
const number = (value, digits) => value === null || value === undefined ? MISSING
  : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const score = (e) => number(e.score, 1) + (e.std === null ? "" : ` ± ${number(e.std, 1)}`);
const trials = (e) => number(e.trials, 0) + (e.edge && ` ${e.edge}`);
const verdict = (e) => e.verified === 0 ? "no" : !e.confirmed ? `${e.verified} of ${e.runs.length}`
  : e.seeds >= 3 ? "yes" : `yes (${e.seeds} ${e.seeds === 1 ? "seed" : "seeds"})`;

function make(name, text, properties = {}) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  return Object.assign(element, properties);
}

function draw(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- the table --------------------------------------------------------------------------------------------------

const shown = (text) => (cell) => document.createTextNode(text(cell.getData()));
const names = (field, title, responsive, more = {}) => ({ field, title, responsive, sorter: "string",
  formatter: shown((e) => e[field]), ...more });
const numbers = (field, title, responsive, text, more = {}) => ({ field, title, responsive, sorter: "number", hozAlign: "right",
  headerHozAlign: "right", headerSortStartingDir: "desc", sorterParams: { alignEmptyValues: "bottom" },
  formatter: shown(text), ...more });

const columns = [
  names("optimizer", "method", 0, { minWidth: 90, formatter: (cell) => {
    const button = make("button", cell.getData().optimizer, { type: "button", className: "open" });
    button.addEventListener("click", (event) => { event.stopPropagation(); open(cell.getData()); });
    return button;
  } }),
  numbers("score", "score, %", 0, score, { minWidth: 90 }),
  names("scheme", "scheme", 1), // before the task: on a phone there is room for one of them
  names("task", "task", 1),
  names("model", "model", 2),
  names("precision", "precision", 10),
  names("budget", "budget", 9),
  numbers("seeds", "seeds", 6, (e) => number(e.seeds, 0) + (e.lost ? ` of ${e.seeds + e.lost}` : "")),
  numbers("forwards", "forwards", 4, (e) => number(e.forwards, 0)),
  numbers("seconds", "seconds", 5, (e) => number(e.seconds, 1)),
  names("hardware", "hardware", 7),
  numbers("memory", "peak GiB", 3, (e) => number(e.memory, 3)),
  numbers("overhead", "overhead", 8, (e) => number(e.overhead, 2)),
  numbers("trials", "trials", 6, trials),
  numbers("verified", "verified", 3, verdict, { hozAlign: "left", headerHozAlign: "left", formatter: (cell) =>
    make("span", (cell.getData().confirmed ? "✓ " : "") + verdict(cell.getData()),
      { className: cell.getData().confirmed ? "yes" : "no" }) }),
  names("suite", "suite", 11),
];

const table = new Tabulator("#table", {
  data: entries, columns, index: "id", layout: "fitDataFill", responsiveLayout: "hide", placeholder: "no entry fits the filters",
  maxHeight: "min(620px, 75vh)", renderVerticalBuffer: 300, columnDefaults: { headerTooltip: false },
  initialSort: [{ column: "score", dir: "desc" }],
});
table.on("rowClick", (event, row) => open(row.getData()));

// ---- filters ----------------------------------------------------------------------------------------------------

function fill(select, values) {
  select.append(make("option", "all", { value: "" }), ...values.map((value) => make("option", value, { value })));
}
for (const name of CHOICES) {
  fill($(name), [...new Set(entries.map((e) => e[name]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true })));
}

const wanted = new URLSearchParams(location.hash.slice(1)); // a link to #task=sst2 opens the page so filtered
for (const name of ["search", ...CHOICES]) if (wanted.has(name)) $(name).value = wanted.get(name);
$("verified").checked = wanted.has("verified");

let visible = entries;
function apply() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = CHOICES.map((name) => [name, $(name).value]).filter(([, value]) => value);
  const fits = (e) => chosen.every(([name, value]) => e[name] === value) && (!$("verified").checked || e.confirmed)
    && words.every((word) => [e.optimizer, e.model, e.task, e.scheme, e.precision, e.budget, e.suite, e.hardware]
      .some((text) => text.toLowerCase().includes(word)));
  visible = entries.filter(fits);
  table.setFilter(fits);
  const confirmed = visible.filter((e) => e.confirmed).length;
  $("count").textContent = `${visible.length.toLocaleString("en-US")} of ${entries.length.toLocaleString("en-US")} entries, ${confirmed.toLocaleString("en-US")} verified`;
  const state = new URLSearchParams(chosen);
  if ($("search").value) state.set("search", $("search").value);
  if ($("verified").checked) state.set("verified", "");
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
  plots();
}
function plots() {
  plot($("memory-plot"), "memory", "peak memory, GiB");
  plot($("forwards-plot"), "forwards", "forward passes");
}
let waiting, resizing;
new ResizeObserver(() => { clearTimeout(resizing); resizing = setTimeout(plots, 120); }).observe($("plots"));
for (const name of ["input", "change"]) { // what drives a browser for somebody may send one of them alone
  $("filters").addEventListener(name, () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
}
$("filters").addEventListener("reset", () => { clearTimeout(waiting); waiting = setTimeout(apply, 0); });
$("filters").addEventListener("submit", (event) => event.preventDefault());

// ---- plots ------------------------------------------------------------------------------------------------------

function ticks(least, most, n) {
  const rough = (most - least) / n || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(least / step) * step; t <= most + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}
const brief = (value) => value >= 1e4 ? value.toLocaleString("en-US", { notation: "compact" }) : String(value);

// Axes and grid in an empty svg, a unit a pixel; returns the functions from values to places.
function frame(svg, xs, ys, label, width) {
  svg.replaceChildren();
  const height = 280, left = 40, right = 14, top = 10, bottom = 38;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const bound = (values, better) => values.reduce((a, b) => better(a, b), values[0]);
  let [y0, y1] = [bound(ys, Math.min), bound(ys, Math.max)];
  const pad = (y1 - y0) * 0.06 || 1;
  [y0, y1] = [y0 - pad, y1 + pad];
  const x1 = bound(xs, Math.max) * 1.04 || 1;
  const x = (value) => left + (width - left - right) * value / x1;
  const y = (value) => height - bottom - (height - top - bottom) * (value - y0) / (y1 - y0);
  for (const t of ticks(y0, y1, 5)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
      draw("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
  }
  for (const t of ticks(0, x1, 5)) {
    svg.append(draw("line", { class: "grid", x1: x(t), x2: x(t), y1: top, y2: height - bottom }),
      draw("text", { x: x(t), y: height - bottom + 15, "text-anchor": "middle" }, brief(t)));
  }
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, label));
  return { x, y };
}

function plot(svg, field, label) {
  const points = visible.filter((e) => e[field] !== null);
  if (points.length === 0) { svg.replaceChildren(); return; }
  const width = svg.clientWidth || 520;
  const { x, y } = frame(svg, points.map((e) => e[field]), points.map((e) => e.score), label, width);
  const dots = document.createDocumentFragment();
  for (const e of points) {
    const crowded = points.length > 500;
    const dot = draw("circle", { class: crowded ? "dot crowd" : "dot", cx: x(e[field]).toFixed(1), cy: y(e.score).toFixed(1),
      r: crowded ? 2.5 : 5, "data-id": e.id });
    dot.style.fill = colour(e);
    dots.append(dot);
  }
  svg.append(dots);
  // Names for the front, where nothing cheaper is better, as far as there is room.
  let best = -Infinity, at = null;
  const front = [...points].sort((a, b) => a[field] - b[field] || b.score - a.score).filter((e) => e.score > best && ((best = e.score), true));
  for (const e of front) {
    const place = [x(e[field]), y(e.score) - 8];
    if (at !== null && Math.abs(place[0] - at[0]) < 90 && Math.abs(place[1] - at[1]) < 12) continue;
    at = place;
    const end = place[0] > width - 100;
    svg.append(draw("text", { class: "name", x: place[0] + (end ? 4 : -4), y: Math.max(11, place[1]), "text-anchor": end ? "end" : "start" }, e.optimizer));
  }
}

function legend() {
  const line = $("legend");
  line.replaceChildren("colour: scheme");
  schemes.slice(0, 7).forEach((name, i) => {
    const mark = make("i");
    mark.style.background = `var(--c${i})`;
    line.append(mark, name);
  });
}
const describe = (e) => `${e.optimizer}, ${e.scheme}, ${e.task}, ${e.model}: ${score(e)} %, ${number(e.memory, 3)} GiB, ${number(e.forwards, 0)} forwards`;
for (const svg of [$("memory-plot"), $("forwards-plot")]) {
  const of = (event) => event.target.dataset.id === undefined ? null : entries[Number(event.target.dataset.id)];
  svg.addEventListener("pointerover", (event) => { const e = of(event); e ? $("legend").replaceChildren(describe(e)) : legend(); });
  svg.addEventListener("pointerleave", legend);
  svg.addEventListener("click", (event) => { const e = of(event); if (e) open(e); });
}

// ---- one entry --------------------------------------------------------------------------------------------------

function open(e) {
  $("entry-title").textContent = `${e.optimizer} · ${e.scheme} · ${e.task} · ${e.model}`;
  const facts = make("dl");
  const fact = (name, value) => { const pair = make("div"); pair.append(make("dt", name), make("dd", value)); facts.append(pair); };
  fact(`test ${e.metric}, %`, `${score(e)} (${e.seeds} ${e.seeds === 1 ? "seed" : "seeds"}${e.lost ? `, ${e.lost} lost` : ""})`);
  fact("dev, %", number(e.dev, 1));
  fact("before training, %", number(e.start, 1));
  fact("budget", e.budget);
  fact("forwards", number(e.forwards, 0));
  fact("seconds of training", number(e.seconds, 1));
  fact("hardware", e.hardware);
  fact("peak memory, GiB", `${number(e.memory, 3)} (${e.memory_kind})`);
  fact("overhead", e.overhead === null ? "not measured" : number(e.overhead, 2));
  fact("tuning trials", trials(e));
  fact("precision", e.precision);
  fact("suite", e.suite);
  fact("verified", verdict(e));
  const body = [facts, ...e.notes.map((note) => make("p", note, { className: "small" }))];
  if (e.curve.length > 1) {
    const svg = draw("svg", { role: "img", "aria-label": "dev score against forward passes" });
    const { x, y } = frame(svg, e.curve.map((p) => p[0]), e.curve.flatMap((p) => [p[2], p[3]]), "forward passes",
      Math.min(800, innerWidth - 80));
    const path = (list, k) => list.map((p) => `${x(p[0]).toFixed(1)},${y(p[k]).toFixed(1)}`).join(" ");
    svg.append(draw("polygon", { class: "band", points: `${path(e.curve, 2)} ${path([...e.curve].reverse(), 3)}` }),
      draw("polyline", { class: "curve", points: path(e.curve, 1) }));
    const figure = make("figure");
    figure.append(make("figcaption", "dev score, mean over seeds (band: range)"), svg);
    body.push(figure);
  }
  body.push(make("h3", "Runs, and the exact commands"));
  for (const run of e.runs) {
    const line = make("div", undefined, { className: "run" });
    const copy = make("button", "copy", { type: "button" });
    copy.addEventListener("click", () => navigator.clipboard?.writeText(run.command).then(() => { copy.textContent = "copied"; }, () => {}));
    line.append(make("span", `seed ${run.seed}: test ${number(run.score, 1)}, dev ${number(run.dev, 1)} at step ${number(run.step, 0)}; `
      + `commit ${run.commit}; ${run.verified ? "verified" : "not verified"}`), copy);
    body.push(line, make("pre", run.command || "the record names no command", { className: "command" }));
  }
  const config = Object.fromEntries(Object.entries(e.config).map(([key, place]) => [key, parts[place]]));
  body.push(make("h3", "Config"), make("pre", JSON.stringify(config, null, 2), { className: "config" }));
  $("entry-body").replaceChildren(...body);
  if (!$("entry").open) $("entry").showModal();
  $("entry").scrollTop = 0;
}
$("close").addEventListener("click", () => $("entry").close());
$("entry").addEventListener("click", (event) => { if (event.target === $("entry")) $("entry").close(); });

legend();
table.on("tableBuilt", apply);
