// The panel "Night": the models that a run kept on its way, at the same prompt and with the same seed.

import { postLines } from "./api.js";
import { byId, debounce, element, number } from "./dom.js";
import { Notebook } from "./notebook.js";
import { level } from "./paper.js";

const MAX_TOKENS = 120;
const PAUSE_MS = 900;

export class NightPanel {
  // `prompt()` gives the text to continue; `onUse(snapshot)` gets the model that the notebook should use.
  constructor(vocabulary, snapshots, settings, prompt, onUse) {
    Object.assign(this, { vocabulary, snapshots, settings, prompt, onUse });
    this.texts = new Map();
    this.running = null;
    const slider = byId("night");
    slider.max = snapshots.length - 1;
    slider.value = snapshots.length - 1;
    slider.disabled = byId("night-play").disabled = snapshots.length < 2;
    byId("night-marks").replaceChildren(...snapshots.map((_, i) => element("option", { value: i })));
    if (snapshots.length < 2) {
      byId("night-about").textContent =
        "This model belongs to no run with checkpoints, so there is nothing to compare. Open a run: tiny-gpt play RUN.";
    }
    const write = debounce(() => this.write(), 150);
    slider.addEventListener("input", () => {
      this.#label();
      if (byId("night-use").checked) onUse(this.snapshot);
      write();
    });
    byId("night-use").addEventListener("change", (event) => onUse(event.target.checked ? this.snapshot : snapshots.at(-1)));
    byId("night-play").addEventListener("click", () => (this.playing ? this.#pause() : this.#play()));
    this.#label();
    this.#drawCurve();
  }

  get snapshot() {
    return this.snapshots[Number(byId("night").value)];
  }

  // Write the text of the model at the slider, unless it is known.
  async write() {
    this.running?.abort();
    const sampling = { ...this.settings.sampling, n: 1 };
    sampling.max_tokens = Math.min(sampling.max_tokens, MAX_TOKENS);
    const request = { ...sampling, text: this.prompt(), snapshot: this.snapshot.key };
    const key = JSON.stringify(request);
    let known = this.texts.get(key);
    if (!known) {
      known = new Notebook(this.vocabulary);
      const stop = new AbortController();
      this.running = stop;
      this.#show(request.text, known);
      try {
        for await (const event of postLines("/play/continue", request, stop.signal)) {
          if (event.done) break;
          known.append(event);
          if (this.running === stop) this.#show(request.text, known);
        }
        this.texts.set(key, known);
      } catch (error) {
        if (error.name === "AbortError") return;
        byId("night-text").textContent = error.message;
        return;
      } finally {
        if (this.running === stop) this.running = null;
      }
    }
    this.#show(request.text, known);
  }

  async #play() {
    this.playing = true;
    this.#button();
    for (let i = 0; i < this.snapshots.length && this.playing; i++) {
      byId("night").value = i;
      this.#label();
      await this.write();
      await new Promise((done) => setTimeout(done, PAUSE_MS));
    }
    this.#pause();
  }

  #pause() {
    this.playing = false;
    this.#button();
  }

  #button() {
    byId("night-play").textContent = this.playing ? "❚❚" : "▶";
    byId("night-play").setAttribute("aria-label", this.playing ? "Pause" : "Play from the first model to the last");
  }

  #show(prompt, notebook) {
    const tail = prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt;
    const spans = notebook.items.map((item) => element("span", { class: `token s${level(item.bits)}` }, item.text));
    byId("night-text").replaceChildren(element("span", { class: "prompt" }, tail), ...spans);
  }

  #label() {
    byId("night-label").textContent = describe(this.snapshot);
    byId("night").setAttribute("aria-valuetext", describe(this.snapshot));
    for (const dot of byId("night-curve").querySelectorAll("circle")) {
      dot.classList.toggle("here", Number(dot.dataset.index) === Number(byId("night").value));
    }
  }

  // Validation loss in bits per byte, a dot for each model below its place on the slider.
  #drawCurve() {
    const svg = byId("night-curve");
    const known = this.snapshots.map((snapshot, index) => ({ ...snapshot, index })).filter((s) => s.val_bits_per_byte);
    svg.classList.toggle("empty", known.length < 2);
    if (known.length < 2) return;
    const losses = known.map((s) => s.val_bits_per_byte);
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    const last = this.snapshots.length - 1;
    const points = known.map((s) => [
      8 + (384 * s.index) / last,
      8 + (50 * (high - s.val_bits_per_byte)) / (high - low || 1),
      s.index,
    ]);
    const make = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      return made;
    };
    const line = make("polyline", { points: points.map(([x, y]) => `${x},${y}`).join(" ") });
    const label = (value, [x, y], anchor, dx, dy) => {
      const text = make("text", { x: x + dx, y: y + dy, "text-anchor": anchor });
      text.textContent = value.toFixed(2);
      return text;
    };
    const ends = [label(losses[0], points[0], "start", -6, 20), label(losses.at(-1), points.at(-1), "end", 6, -10)];
    svg.replaceChildren(line, ...ends, ...points.map(([x, y, i]) => make("circle", { cx: x, cy: y, r: 4, "data-index": i })));
    this.#label();
  }
}

export function describe(snapshot) {
  const parts = [`Step ${number(snapshot.step)}`];
  if (snapshot.progress !== null) parts.push(`${Math.round(100 * snapshot.progress)}% of the run`);
  if (snapshot.val_bits_per_byte) parts.push(`${snapshot.val_bits_per_byte.toFixed(2)} bits per byte`);
  if (snapshot.kind === "best") parts.push("the best");
  return parts.join(" · ");
}
