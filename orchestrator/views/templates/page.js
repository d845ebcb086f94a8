"use strict";
// Draws the charts that Python has built, opens the chosen experiment, filters the list. It makes no HTML of its own.

const element = (id) => document.getElementById(id);
let figures = {};

async function unpack(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function draw(root) {
  for (const chart of root.querySelectorAll("[data-figure]:not(.drawn)")) {
    const figure = figures[chart.dataset.figure];
    if (!figure || chart.closest("details:not([open])")) continue; // not unpacked yet, or not to be seen
    chart.classList.add("drawn");
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
  // A page of a session under way looks for a newer one, unless somebody is reading or typing.
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
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))); // words first, then the charts
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  figures = JSON.parse(await unpack("figures"));
  draw(document);
  document.body.dataset.drawn = "yes";
}

begin();
