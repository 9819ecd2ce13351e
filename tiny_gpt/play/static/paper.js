// The paper: a text area, and behind it a mirror of the same text in which each token has its color. The text area
// makes typing, phones' keyboards, screen readers and input methods work; the mirror only shows backgrounds.

import { byId, element } from "./dom.js";

// Bits of surprise from which the next color begins.
export const LEVELS = [0.5, 1.5, 3, 5, 8];
const area = byId("text");
const sheet = area.parentElement;
const mirror = byId("mirror");

export const level = (bits) => LEVELS.filter((limit) => bits >= limit).length;

export function tokenSpan(item, index) {
  const span = element("span", { class: item.id === null ? "raw" : `token s${level(item.bits)}` }, item.text);
  span.dataset.index = index;
  return span;
}

// Show all of the notebook. The caret stays where it is, or goes to `caret`.
export function showAll(notebook, caret = null) {
  const text = notebook.text;
  if (area.value !== text) {
    const place = caret ?? Math.min(area.selectionStart, text.length);
    area.value = text;
    area.setSelectionRange(place, place);
  } else if (caret !== null) area.setSelectionRange(caret, caret);
  mirror.replaceChildren(...notebook.items.map(tokenSpan));
  if (caret === text.length) sheet.scrollTop = sheet.scrollHeight;
}

// Show one more token at the end, without touching the others.
export function showAppended(notebook) {
  const item = notebook.items.at(-1);
  mirror.append(tokenSpan(item, notebook.items.length - 1));
  if (item.text) {
    const follows = area.selectionStart === area.value.length;
    area.value += item.text;
    if (follows) area.setSelectionRange(area.value.length, area.value.length);
    sheet.scrollTop = sheet.scrollHeight;
  }
}

export function select(index) {
  mirror.querySelector(".selected")?.classList.remove("selected");
  mirror.children[index]?.classList.add("selected");
}

export function showColors(on) {
  mirror.classList.toggle("plain", !on);
  byId("scale").hidden = !on;
}

export function drawScale() {
  const names = ["0", ...LEVELS.map((limit, i) => (i === LEVELS.length - 1 ? `${limit}+ bits` : `${limit}`))];
  byId("scale").replaceChildren(...names.map((name, i) => element("li", { class: `s${i}` }, name)));
}
