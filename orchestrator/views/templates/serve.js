"use strict";
// Follows a night: replaces what has changed of a session's page, and counts the seconds. All text comes escaped.

const live = document.getElementById("live");
const shown = new Map(); // the HTML of each part as it was sent, since the reader may have opened or chosen something

function merge(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").body;
  let before = null;
  for (const part of [...fresh.children]) {
    const sent = part.outerHTML;
    let place = document.getElementById(part.id);
    if (place && shown.get(part.id) !== sent) {
      const chosen = document.activeElement?.closest("button")?.value;
      const held = place.contains(document.activeElement) && chosen;
      place.replaceWith(part);
      place = part;
      if (held) part.querySelector(`button[value="${CSS.escape(held)}"]`)?.focus();
    }
    place ??= part;
    shown.set(part.id, sent);
    const next = before ? before.nextElementSibling : live.firstElementChild;
    if (next !== place) live.insertBefore(place, next);
    before = place;
  }
  while (before?.nextElementSibling) before.nextElementSibling.remove();
}

function tick() {
  for (const clock of document.querySelectorAll("[data-age]")) {
    clock.began ??= Date.now() / 1000 - clock.dataset.age; // by the reader's own clock, whatever it says
    const seconds = Math.max(0, Math.floor(Date.now() / 1000 - clock.began));
    if (clock.tagName === "PROGRESS") clock.value = seconds;
    else clock.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
}

async function follow(seen = "") {
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch(live.dataset.source + seen, { signal: AbortSignal.timeout(30_000) });
    const news = await answer.json(); // what is wrong comes as a page
    if (news) { merge(news.html); tick(); ({ seen } = news); }
    lost.hidden = true;
  } catch { lost.hidden = false; }
  setTimeout(follow, 1000, seen);
}

if (live) {
  for (const part of live.children) shown.set(part.id, part.outerHTML);
  setInterval(tick, 1000);
  follow();
}
