"use strict";
// Draws the charts that Python has built, opens the chosen experiment, filters the list. It creates no text of its own.

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
  margin: { l: 8, r: 8, t: 8, b: 8 },
  xaxis: axis,
  yaxis: axis,
  updatemenudefaults: {
    type: "buttons", direction: "right", x: 1, xanchor: "right", y: 1, yanchor: "bottom", pad: { b: 8 },
    bgcolor: "rgba(0,0,0,0)", bordercolor: "rgba(128,133,152,0.25)",
  },
} };

async function unpack(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function draw(root) {
  for (const chart of root.querySelectorAll("[data-figure]:not(.drawn)")) {
    const figure = figures[chart.dataset.figure];
    if (!figure || chart.closest("details:not([open])")) continue; // not unpacked yet, or not visible
    chart.classList.add("drawn");
    figure.layout.template = template;
    if (innerWidth < 860) figure.layout.dragmode = false; // a finger on a chart scrolls the page
    Plotly.newPlot(chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    chart.on("plotly_click", ({ points }) => choose(points.map((point) => point.customdata).find((number) => number !== undefined)));
  }
}

function choose(number) {
  const chosen = element(String(number ?? location.hash.slice(1)));
  if (chosen?.tagName !== "DETAILS") return;
  chosen.hidden = false;
  chosen.open = true;
  chosen.scrollIntoView();
  if (number !== undefined) history.replaceState(null, "", `#${number}`);
}

function filter(event) {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const experiment of document.querySelectorAll("#experiments details")) {
    const text = experiment.textContent.toLowerCase();
    experiment.hidden = !words.every((word) => text.includes(word));
  }
}

function refresh() {
  // While the session runs, reload the page regularly, unless somebody is reading or typing.
  const seconds = +document.body.dataset.refresh;
  const busy = () => document.hidden || document.activeElement === element("filter") || document.querySelector("details[open]");
  if (seconds) setInterval(() => busy() || location.reload(), 1000 * seconds);
}

async function begin() {
  document.addEventListener("toggle", (event) => draw(event.target), true);
  element("filter")?.addEventListener("input", filter);
  addEventListener("hashchange", () => choose());
  choose();
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
