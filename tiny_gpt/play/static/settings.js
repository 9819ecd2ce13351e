// The settings of sampling: fields and sliders of the page, what the server gets, what a link carries.

import { byId, element } from "./dom.js";

// Sliders: name, label, help, least, most, step.
const SLIDERS = [
  ["temperature", "Temperature", "lower is more predictable, higher more varied", 0, 2, 0.05],
  ["top_k", "Top-k", "only the k likeliest tokens", 0, 256, 1],
  ["top_p", "Top-p", "only the likeliest, up to this sum", 0.05, 1, 0.01],
  ["min_p", "Min-p", "at least this fraction of the likeliest", 0, 0.5, 0.01],
];
const FIELDS = ["max_tokens", "n", "seed"];
const MAX_SEED = 2 ** 31;

export class Settings {
  constructor(defaults, limits) {
    this.defaults = defaults;
    byId("max_tokens").max = limits.max_tokens;
    this.listeners = [];
    byId("sliders").replaceChildren(...SLIDERS.map((slider) => this.#slider(...slider)));
    this.set(defaults);
    for (const name of FIELDS) byId(name).addEventListener("change", () => this.#changed());
    byId("new_seed").addEventListener("change", () => this.#changed());
    byId("seed").addEventListener("input", () => {
      byId("new_seed").checked = false;
    });
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  // What a request to the server carries.
  get sampling() {
    const values = { seed: this.seed, n: Number(byId("n").value), max_tokens: this.#whole("max_tokens") };
    for (const [name] of SLIDERS) values[name] = Number(byId(name).value);
    return values;
  }

  get seed() {
    return this.#whole("seed");
  }

  // The seed of the next text: the one in the field, or a new one that is then shown there.
  takeSeed() {
    if (byId("new_seed").checked) byId("seed").value = Math.floor(Math.random() * MAX_SEED);
    this.#changed();
    return this.seed;
  }

  set(values) {
    for (const [name] of SLIDERS) {
      if (Number.isFinite(values[name])) byId(name).value = values[name];
      this.#show(name);
    }
    for (const name of FIELDS) if (Number.isFinite(values[name])) byId(name).value = values[name];
    if (typeof values.new_seed === "boolean") byId("new_seed").checked = values.new_seed;
    if (!byId("n").value) byId("n").value = "1";
    this.#changed();
  }

  get saved() {
    return { ...this.sampling, new_seed: byId("new_seed").checked };
  }

  #whole(name) {
    const field = byId(name);
    const value = Math.floor(Number(field.value));
    const most = Number(field.max || Number.MAX_SAFE_INTEGER);
    const fallback = this.defaults[name];
    return field.value !== "" && value >= Number(field.min) && value <= most ? value : fallback;
  }

  #slider(name, label, help, min, max, step) {
    const input = element("input", { type: "range", id: name, min, max, step, "aria-describedby": `${name}-help` });
    input.addEventListener("input", () => {
      this.#show(name);
      this.#changed();
    });
    return element(
      "div",
      { class: "slider" },
      element("label", { for: name }, label),
      element("span", { class: "quiet", id: `${name}-help` }, help),
      element("output", { for: name, id: `${name}-value` }),
      input,
    );
  }

  #show(name) {
    const value = Number(byId(name).value);
    const text = name === "top_k" ? (value ? String(value) : "all") : value.toFixed(2);
    byId(`${name}-value`).textContent = text;
    byId(name).setAttribute("aria-valuetext", text);
  }

  #changed() {
    for (const listener of this.listeners) listener();
  }
}
