"use strict";
// Draws the charts that Python has built; opens, searches and sorts the experiments. Of its own it writes numbers only.

const element = (id) => document.getElementById(id);
let figures = {};

// The plotly template of all charts. Readable on white and on black, since the page follows the reader's color scheme.
const axis = { gridcolor: "rgba(128,133,152,0.25)", linecolor: "rgba(128,133,152,0.25)", showline: true, zeroline: false, automargin: true };
const template = { layout: {
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: "system-ui, sans-serif", size: 12, color: "#808598" },
  hoverlabel: { bgcolor: "#2b2d3a", font: { color: "#f2f2f7" }, align: "left" },
  hovermode: "closest",
  showlegend: false,
  legend: { x: 1, xanchor: "right", y: 1, bgcolor: "rgba(0,0,0,0)" },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#808598", activecolor: "#7a70e8" },
  margin: { l: 8, r: 8, t: 8, b: 8 },
  xaxis: axis,
  yaxis: axis,
  updatemenudefaults: {
    type: "buttons", direction: "right", x: 0, xanchor: "left", y: 1, yanchor: "bottom", pad: { b: 8 },
    bgcolor: "rgba(0,0,0,0)", bordercolor: "rgba(128,133,152,0.25)",
  },
} };

async function unpack(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// On a phone, a finger on a chart scrolls the page, and there is no room for two rows of buttons in one.
function fit(layout) {
  if (innerWidth >= 860) return;
  layout.dragmode = false;
  if (layout.updatemenus?.length) layout.margin = { ...layout.margin, t: 80 };
}

function show(chart, { data, layout }) {
  layout.template = template;
  if (data[0]?.type === "parcoords") layout.paper_bgcolor = "#fff"; // its better lines are darker, in any scheme
  fit(layout);
  chart.replaceChildren();
  const pictures = ["svg", "png"].map((format) => ({
    name: format, title: format.toUpperCase(), icon: Plotly.Icons.camera,
    click: (drawn) => Plotly.downloadImage(drawn, { format, scale: 3, filename: document.title }),
  }));
  const config = { responsive: true, displaylogo: false, displayModeBar: true, modeBarButtons: [pictures] };
  return Plotly.newPlot(chart, data, layout, config);
}

function draw(root) {
  for (const chart of root.querySelectorAll("[data-figure]:not(.drawn)")) {
    const figure = figures[chart.dataset.figure];
    if (!figure || chart.closest("details:not([open])")) continue; // not unpacked yet, or not visible
    chart.classList.add("drawn");
    show(chart, figure);
    chart.on("plotly_click", ({ points }) => choose(points.map((point) => point.data.meta ?? point.customdata).find((number) => number !== undefined)));
  }
}

// The chosen curves in one chart: the solid one of each experiment.
function overlay() {
  const chosen = [...document.querySelectorAll("[data-curve]:checked")].map((box) => figures[`curve-${box.dataset.curve}`]);
  element("overlay").hidden = chosen.length === 0;
  const colors = ["#7a70e8", "#1f9d72", "#d9663c", "#4f86e0", "#b98a1f", "#d9534f"];
  const data = chosen.map(({ data: [trace] }, i) => ({ ...trace, line: { color: colors[i % colors.length] } }));
  if (chosen.length) show(document.querySelector("[data-overlay]"), { data, layout: { ...chosen[0].layout, showlegend: true } });
}

const listed = () => [...document.querySelectorAll("#list > details")];

// The address holds what the list shows: #17 opens an experiment, #?find=muon&sort=-change searches and sorts.
function remember() {
  const wanted = new URLSearchParams();
  if (element("filter").value) wanted.set("find", element("filter").value);
  const pressed = document.querySelector("[data-sort][aria-pressed=true]");
  if (pressed) wanted.set("sort", (pressed.dataset.down ? "-" : "") + pressed.dataset.sort);
  history.replaceState(null, "", wanted.size ? `#?${wanted}` : location.pathname + location.search);
}

function recall() {
  if (!location.hash.startsWith("#?") || !element("filter")) return choose();
  const wanted = new URLSearchParams(location.hash.slice(2));
  element("filter").value = wanted.get("find") ?? "";
  const sort = wanted.get("sort") ?? "";
  const button = document.querySelector(`[data-sort="${CSS.escape(sort.replace(/^-/, ""))}"]`);
  if (button) arrange(button, sort.startsWith("-"));
  search();
  element("experiments").scrollIntoView();
}

function choose(number) {
  const chosen = element(String(number ?? decodeURIComponent(location.hash.slice(1))));
  if (chosen?.tagName !== "DETAILS") return;
  chosen.hidden = false;
  chosen.open = true;
  chosen.scrollIntoView();
  chosen.querySelector("summary").focus({ preventScroll: true });
  if (number !== undefined) history.replaceState(null, "", `#${number}`);
}

function search() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const experiment of listed()) {
    const text = experiment.textContent.toLowerCase();
    experiment.hidden = !words.every((word) => text.includes(word));
    found += !experiment.hidden;
  }
  element("found").textContent = words.length ? `${found} / ${listed().length}.` : "";
}

function arrange(button, down) {
  const key = button.dataset.sort;
  const numeric = ["n", "score", "change"].includes(key);
  const rank = (experiment) => (numeric ? parseFloat(experiment.dataset[key]) : experiment.dataset[key]);
  const compare = (a, b) => (numeric ? rank(a) - rank(b) : rank(a).localeCompare(rank(b)));
  const known = listed().filter((experiment) => experiment.dataset[key] !== "");
  known.sort((a, b) => (down ? compare(b, a) : compare(a, b)));
  element("list").prepend(...known); // what has no number stays below
  for (const other of document.querySelectorAll("[data-sort]")) {
    other.setAttribute("aria-pressed", other === button);
    other.dataset.down = other === button && down ? "yes" : "";
  }
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const filter = element("filter");
  if (event.target === filter) {
    if (event.key !== "Escape") return;
    filter.value = "";
    filter.blur();
    search();
    remember();
  } else if (event.key === "/") {
    event.preventDefault();
    filter.scrollIntoView();
    filter.focus();
  } else if (event.key === "j" || event.key === "k") {
    const seen = listed().filter((experiment) => !experiment.hidden);
    const here = seen.indexOf(document.activeElement?.closest("#list > details"));
    const next = seen[here < 0 ? 0 : Math.min(Math.max(here + (event.key === "j" ? 1 : -1), 0), seen.length - 1)];
    next?.querySelector("summary").focus();
  }
}

function refresh() {
  // While the night runs, reload regularly, unless somebody reads or types; not once the page is long overdue.
  const { refresh: seconds, due } = document.body.dataset;
  if (!seconds) return;
  const overdue = () => Date.now() / 1000 > +due + 600;
  const busy = () => document.hidden || document.activeElement === element("filter") || document.querySelector("#list details[open]");
  const look = () => {
    element("overdue").hidden = !overdue();
    if (!overdue() && !busy()) location.reload();
  };
  element("overdue").hidden = !overdue();
  setInterval(look, 1000 * seconds);
}

async function begin() {
  document.body.classList.add("ready");
  document.addEventListener("toggle", (event) => draw(event.target), true);
  if (element("filter")) {
    element("filter").addEventListener("input", () => { search(); remember(); });
    document.addEventListener("keydown", press);
    document.addEventListener("change", ({ target }) => target.dataset.curve && overlay());
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => { arrange(button, button.getAttribute("aria-pressed") === "true" && !button.dataset.down); remember(); });
    }
  }
  for (const time of document.querySelectorAll("time")) time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
  addEventListener("hashchange", recall);
  recall();
  refresh();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))); // show the text first, then the charts
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  figures = JSON.parse(await unpack("figures"));
  draw(document);
  document.body.dataset.drawn = "yes";
}

begin();
