// Several continuations side by side, of which a person keeps one.

import { byId, element } from "./dom.js";
import { Notebook } from "./notebook.js";
import { level } from "./paper.js";

export class Alternatives {
  // `onKeep(items)`: the chosen continuation's items.
  constructor(vocabulary, onKeep) {
    Object.assign(this, { vocabulary, onKeep });
    this.notebooks = [];
    this.box = byId("alternatives");
  }

  get isOpen() {
    return this.notebooks.length > 0;
  }

  // One more token of the continuation number `event.text`.
  add(event) {
    while (this.notebooks.length <= event.text) this.#open();
    const item = this.notebooks[event.text].append(event);
    const text = this.box.children[event.text].querySelector(".alternative-text");
    text.append(element("span", { class: `token s${level(item.bits)}` }, item.text));
  }

  keep(number) {
    if (this.notebooks[number]) this.onKeep(this.notebooks[number].items);
  }

  clear() {
    this.notebooks = [];
    this.box.replaceChildren();
    this.box.hidden = true;
  }

  #open() {
    const number = this.notebooks.length;
    this.notebooks.push(new Notebook(this.vocabulary));
    const keep = element("button", { type: "button", "aria-label": `Keep alternative ${number + 1}` }, "Keep ", element("kbd", {}, `Alt ${number + 1}`));
    keep.addEventListener("click", () => this.keep(number));
    const text = element("div", { class: "alternative-text", tabindex: 0, role: "region", "aria-label": `Alternative ${number + 1}` });
    this.box.append(element("div", { class: "alternative" }, text, keep));
    this.box.hidden = false;
  }
}
