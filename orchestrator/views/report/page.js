"use strict";
// Draws the charts and shows the chosen experiment's musing. What agents wrote is only ever set as text.

const element = (id) => document.getElementById(id);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(4);
const people = (x) => (x >= 1e6 ? `${(x / 1e6).toPrecision(3)}M` : x >= 1e3 ? `${(x / 1e3).toPrecision(3)}k` : `${+x.toPrecision(3)}`);
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const narrow = () => window.innerWidth < 860;

const at = (e) => (axis === "hours" ? e.hours : e.number);

let data = null;
let axis = sessionStorage.getItem("axis") || "number";
let chosen = null;

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function diffOf(text) {
  const kinds = { "+": "plus", "-": "minus", "@": "hunk" };
  return h("pre", { class: "diff" }, ...text.split("\n").map((line) => h("span", { class: kinds[line[0]] || "" }, line || " ")));
}

// ---------------------------------------------------------------- charts

function layout(more) {
  const axes = { gridcolor: color("line"), zeroline: false, linecolor: color("line"), automargin: true, fixedrange: narrow() };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", showlegend: false, dragmode: "zoom",
    font: { family: "system-ui, sans-serif", size: 12, color: color("dim") },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") }, align: "left" },
    ...more,
    xaxis: { ...axes, ...more.xaxis }, yaxis: { ...axes, ...more.yaxis },
  };
}

const draw = (id, traces, more) => Plotly.react(id, traces, layout(more), { displayModeBar: false, responsive: true });

function whenChosen(id) {
  element(id).on?.("plotly_click", (event) => {
    const number = event.points.map((point) => point.customdata).find((value) => typeof value === "number");
    if (number !== undefined) choose(number, true);
  });
}

const hover = (e) => `<b>${e.number}. ${wrapped(e.title)}</b><br>${e.status}` +
  (e.score === null ? "" : ` · ${e.score.toFixed(4)}`) + (e.gain === null ? "" : ` · ${signed(-e.gain)}`);

const wrapped = (text) => escaped(text).replace(/(.{1,60})(\s|$)/g, "$1<br>").replace(/<br>$/, "");

function best() {
  // The best score over time, as a staircase.
  const steps = [];
  let lowest = null;
  for (const e of data.experiments.filter((e) => e.status === "kept" && e.score !== null)) {
    if (lowest !== null && e.score >= lowest) continue;
    lowest = e.score;
    steps.push([at(e) ?? 0, lowest]);
  }
  const ends = data.experiments.map(at).filter((x) => x !== null);
  if (steps.length) steps.push([Math.max(...ends, steps[steps.length - 1][0]), lowest]);
  return steps;
}

function drawProgress() {
  const scored = data.experiments.filter((e) => e.score !== null && at(e) !== null);
  const sorted = scored.map((e) => e.score).sort((a, b) => a - b);
  const steps = best();
  const low = sorted[0] ?? 0;
  const ninety = sorted[Math.floor(0.9 * (sorted.length - 1))] ?? 1;
  const start = steps.length ? steps[0][1] : low;
  const top = Math.max(start, ninety) + 4 * data.sigma;
  const clamp = (y) => Math.min(y, top);
  const points = (rows, marker) => ({
    type: "scatter", mode: "markers", x: rows.map(at), y: rows.map((e) => clamp(e.score)), customdata: rows.map((e) => e.number),
    text: rows.map(hover), hovertemplate: "%{text}<extra></extra>", marker,
  });
  const crashed = data.experiments.filter((e) => ["crashed", "pruned"].includes(e.status) && at(e) !== null);
  const others = scored.filter((e) => e.status !== "kept");
  const size = scored.length > 300 ? 5 : 8;
  const stairs = { type: "scatter", mode: "lines", x: steps.map((s) => s[0]), line: { shape: "hv", width: 0 }, hoverinfo: "skip" };
  const traces = [
    { ...stairs, y: steps.map((s) => s[1] + 2 * data.sigma) },
    { ...stairs, y: steps.map((s) => s[1] - 2 * data.sigma), fill: "tonexty", fillcolor: color("accent-soft") },
    { ...stairs, y: steps.map((s) => s[1]), line: { shape: "hv", width: 2, color: color("accent") } },
    points(others, { color: color("grey"), size, opacity: 0.75, symbol: others.map((e) => (e.score > top ? "triangle-up" : "circle")) }),
    { ...points(crashed, { color: color("bad"), size: size + 1, symbol: "x-thin", line: { width: 2, color: color("bad") } }), y: crashed.map(() => top) },
    points(scored.filter((e) => e.status === "kept"), { color: color("good"), size: size + 4, line: { width: 1.5, color: color("card") } }),
  ];
  const it = scored.find((e) => e.number === chosen);
  if (it) traces.push({ type: "scatter", mode: "markers", x: [at(it)], y: [clamp(it.score)], hoverinfo: "skip",
    marker: { size: size + 12, color: "rgba(0,0,0,0)", line: { width: 2, color: color("accent") } } });
  const pad = 0.06 * (top - low) + data.sigma;
  draw("progress", traces, {
    xaxis: { title: { text: axis === "hours" ? "hours" : "experiment" } },
    yaxis: { title: { text: "val_bpb" }, range: [low - pad, top + pad] },
  });
}

function front(rows, value) {
  // What nothing else beats in both: lower score, and lower value.
  let lowest = Infinity;
  return rows.slice().sort((a, b) => value(a) - value(b) || a.score - b.score).filter((e) => e.score < lowest && ((lowest = e.score), true));
}

function drawFront(id, value, title) {
  const rows = data.experiments.filter((e) => e.score !== null && value(e));
  if (element(id).closest("section").hidden) return;
  const edge = front(rows, value);
  const trace = (list, more) => ({
    type: "scatter", mode: "markers", x: list.map(value), y: list.map((e) => e.score), customdata: list.map((e) => e.number),
    text: list.map((e) => `${hover(e)}<br>${people(value(e))} ${title}`), hovertemplate: "%{text}<extra></extra>", ...more,
  });
  const scores = rows.map((e) => e.score).sort((a, b) => a - b);
  const top = scores[Math.floor(0.95 * (scores.length - 1))] ?? 1;
  draw(id, [
    trace(rows.filter((e) => e.status !== "kept"), { marker: { color: color("grey"), size: 6, opacity: 0.6 } }),
    trace(rows.filter((e) => e.status === "kept"), { marker: { color: color("good"), size: 9 } }),
    trace(edge, { mode: "lines", line: { color: color("accent"), width: 1.5, shape: "hv" }, hoverinfo: "skip", hovertemplate: undefined }),
  ], { xaxis: { title: { text: title } }, yaxis: { title: { text: "val_bpb" }, range: [(scores[0] ?? 0) - 2 * data.sigma, top + 3 * data.sigma] } });
}

function drawSlots() {
  const shades = { scored: "accent", training: "good", pruned: "grey", crashed: "bad", aborted: "bad", "cut off": "grey" };
  const names = (run) => `slot ${run.slot}`;
  const bars = (length, opacity) => ({
    type: "bar", orientation: "h", y: data.runs.map(names), base: data.runs.map((run) => run.from / 3600), x: data.runs.map((run) => length(run) / 3600),
    customdata: data.runs.map((run) => run.number), marker: { color: data.runs.map((run) => color(shades[run.outcome])), opacity },
    text: data.runs.map((run) => `experiment ${run.number}, run ${run.run}: ${run.outcome}<br>${(run.to - run.from).toFixed(0)} s, of them ${run.trained.toFixed(0)} training`),
    textposition: "none", hovertemplate: "%{text}<extra></extra>",
  });
  element("slots").style.height = `${90 + 34 * data.slots}px`;
  draw("slots", [bars((run) => run.to - run.from, 0.3), bars((run) => run.trained, 1)], {
    barmode: "overlay", bargap: 0.25, xaxis: { title: { text: "hours" } }, yaxis: { type: "category", autorange: "reversed", fixedrange: true },
  });
}

function drawCurve(e) {
  const base = data.experiments.find((other) => other.number === e.incumbent);
  const line = (of, name, more) => ({ type: "scatter", mode: "lines", name, x: of.curve.map((p) => 100 * p[0]), y: of.curve.map((p) => p[1]),
    hovertemplate: `${name}: %{y:.3f} at %{x:.0f} %<extra></extra>`, ...more });
  const traces = [line(e, `experiment ${e.number}`, { line: { color: color("accent"), width: 2 } })];
  if (base && base !== e) traces.unshift(line(base, `experiment ${base.number}`, { line: { color: color("grey"), width: 1.5, dash: "dot" } }));
  const settled = traces.flatMap((trace) => trace.y.filter((_, i) => trace.x[i] > 8 || trace.y.length < 6));
  const low = Math.min(...settled), high = Math.max(...settled);
  draw("curve", traces, { showlegend: true, legend: { x: 1, xanchor: "right", y: 1 }, hovermode: "x unified",
    xaxis: { title: { text: "share of the budget, %" } }, yaxis: { title: { text: "training loss" }, range: [low - 0.05 * (high - low), high + 0.05 * (high - low)] } });
}

// ---------------------------------------------------------------- the musing

function table(e) {
  const rows = [];
  if (e.gain !== null) rows.push(["val_bpb", e.score.toFixed(4), (e.score + e.gain).toFixed(4), `${signed(-e.gain)} ± ${e.error.toFixed(4)}`]);
  else if (e.score !== null) rows.push(["val_bpb", e.score.toFixed(4), "", ""]);
  for (const [name, mine, other] of e.metrics) {
    if (mine) rows.push([name, people(mine), other && e.number ? people(other) : "", other && e.number ? `${mine >= other ? "+" : "−"}${Math.abs(100 * (mine / other - 1)).toFixed(0)} %` : ""]);
  }
  if (e.seeds.length > 1) rows.push(["by seed", e.seeds.map((s) => s.toFixed(4)).join(", "), "", ""]);
  const head = h("tr", {}, h("th", {}), ...["this", e.number ? `experiment ${e.incumbent}` : "", e.number ? "change" : ""].map((text) => h("th", { class: "n" }, text)));
  const body = rows.map(([name, ...cells]) => (name === "by seed"
    ? h("tr", {}, h("td", {}, name), h("td", { colspan: 3, class: "n", style: "white-space: normal" }, cells[0]))
    : h("tr", {}, h("td", {}, name), ...cells.map((cell) => h("td", { class: "n" }, cell)))));
  return rows.length ? h("table", {}, head, ...body) : "";
}

function musing(e) {
  const part = (title, ...content) => (content.some((c) => c !== "" && c !== null) ? [h("h3", {}, title), ...content] : []);
  const prose = (text, kind = "prose") => (text ? h("p", { class: kind }, text) : "");
  const expected = e.number && e.expected ? `Expected: ${signed(e.expected)}.` : "";
  return [
    h("h2", {}, `${e.number}. ${e.title}`),
    h("p", { class: "dim" }, h("span", { class: `mark ${e.status}` }, e.status), ` · ${e.family} · by ${e.author}`, e.commit ? " · " : "", e.commit ? h("code", {}, e.commit) : "", e.tier && e.tier !== "none" ? ` · ${e.tier}` : ""),
    prose(e.hypothesis, "quote"),
    ...part("Why we believed it", prose(e.rationale), prose(expected, "dim")),
    ...part("What we changed", e.diff ? diffOf(e.diff) : ""),
    ...part("What happened", prose(e.reason && `${e.status[0].toUpperCase()}${e.status.slice(1)}: ${e.reason}.`), table(e), e.curve.length > 1 ? h("div", { id: "curve", class: "chart" }) : "", prose(e.happened)),
    ...part("What we learned", prose(e.why), prose(e.lesson, "lesson")),
    ...part("What next", prose(e.next)),
  ];
}

function choose(number, scroll) {
  const e = data.experiments.find((other) => other.number === number);
  if (!e) return;
  chosen = number;
  history.replaceState(null, "", `#${number}`);
  element("musing").replaceChildren(...musing(e));
  element("musing").scrollTop = 0;
  for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
  const row = document.querySelector(`tr[data-number="${number}"]`);
  if (row) row.classList.add("chosen");
  if (row && scroll) row.parentElement.parentElement.parentElement.scrollTo({ top: row.offsetTop - 80 });
  if (scroll && narrow()) element("musing").scrollIntoView({ behavior: "smooth" });
  if (window.Plotly) { drawProgress(); if (element("curve")) drawCurve(e); }
}

// ---------------------------------------------------------------- from here on

function drawFronts() {
  // What is the same everywhere is not worth a chart; hidden first, since the charts share a row.
  const fronts = [["memory", (e) => e.memory, "MB"], ["lines", (e) => e.lines, "lines"]];
  for (const [id, value] of fronts) {
    const values = data.experiments.filter((e) => e.score !== null && value(e)).map(value);
    element(id).closest("section").hidden = new Set(values).size < 2;
  }
  for (const front of fronts) drawFront(...front);
}

function drawAll() {
  drawProgress();
  drawFronts();
  drawSlots();
  const e = data.experiments.find((other) => other.number === chosen);
  if (e && element("curve")) drawCurve(e);
}

function listen() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-number]");
    if (link) { event.preventDefault(); choose(+link.dataset.number, link.tagName === "A"); if (narrow()) element("musing").scrollIntoView({ behavior: "smooth" }); }
    const button = event.target.closest("[data-axis]");
    if (button) {
      axis = button.dataset.axis;
      sessionStorage.setItem("axis", axis);
      showAxis();
      drawProgress();
    }
  });
  element("experiments").addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-number]");
    if (row && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); choose(+row.dataset.number); }
  });
  element("filter").addEventListener("input", () => {
    const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll("#experiments tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

function showAxis() {
  for (const button of document.querySelectorAll("[data-axis]")) button.setAttribute("aria-pressed", button.dataset.axis === axis);
}

function refresh() {
  // A page of a session under way looks for a newer one, unless somebody is typing.
  const seconds = +document.body.dataset.refresh;
  if (seconds) setInterval(() => { if (!document.hidden && document.activeElement !== element("filter")) location.reload(); }, 1000 * seconds);
}

async function begin() {
  for (const pre of document.querySelectorAll("pre.diff")) pre.replaceWith(diffOf(pre.textContent));
  data = JSON.parse(await unpacked("data"));
  showAxis();
  listen();
  const kept = data.experiments.filter((e) => e.status === "kept");
  choose(location.hash ? +location.hash.slice(1) : (kept[kept.length - 1] || data.experiments[0] || {}).number, true);
  refresh();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));  // words first, then the charts
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  drawAll();
  for (const id of ["progress", "memory", "lines", "slots"]) whenChosen(id);
  document.body.dataset.drawn = "yes";
}

begin();
