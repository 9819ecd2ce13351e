// The panel "Inside": what each head of a layer looks at, and what each layer would have guessed.

import { postJson } from "./api.js";
import { byId, element, percent, visible } from "./dom.js";
import { textsOf, tokenText } from "./notebook.js";
import { bytes } from "./sampling.js";

export class InsidePanel {
  // `ids()` gives the notebook's tokens, scored if need be; `snapshot()` the model's key.
  constructor(vocabulary, nLayer, ids, snapshot) {
    Object.assign(this, { vocabulary, nLayer, ids, snapshot });
    const options = Array.from({ length: nLayer }, (_, i) => element("option", { value: i }, String(i + 1)));
    byId("inside-layer").replaceChildren(...options);
    byId("inside-look").addEventListener("click", () => this.look());
    byId("inside-layer").addEventListener("change", () => this.inside && this.#load(this.inside.ids));
    this.head = 0;
    this.position = 0;
  }

  async look() {
    const ids = await this.ids();
    if (!ids?.length) {
      byId("inside-note").textContent = "Write something first.";
      return;
    }
    await this.#load(ids);
  }

  async #load(ids) {
    byId("inside-note").textContent = "Looking…";
    const request = { ids, layer: Number(byId("inside-layer").value), snapshot: this.snapshot() };
    try {
      this.inside = await postJson("/play/inside", request);
    } catch (error) {
      byId("inside-note").textContent = error.message;
      return;
    }
    const { ids: seen, attention } = this.inside;
    this.weights = bytes(attention);
    this.texts = textsOf(this.vocabulary, seen);
    this.position = seen.length - 1;
    byId("inside-note").textContent = seen.length < ids.length ? `the last ${seen.length} tokens` : "";
    this.#drawNamed();
    this.#drawHeads();
    this.#drawTokens();
    this.#choose(this.position);
  }

  // The heads of all layers whose pattern is plain, as buttons that show them.
  #drawNamed() {
    const buttons = this.inside.patterns.flatMap((heads, layer) =>
      heads.flatMap(({ name, share }, head) => {
        if (!name) return [];
        const button = element("button", { type: "button" }, `${layer + 1}.${head + 1} ${name} ${percent(share)}`);
        button.addEventListener("click", () => {
          this.head = head;
          byId("inside-layer").value = layer;
          this.#load(this.inside.ids);
        });
        return [button];
      }),
    );
    byId("inside-named").replaceChildren(...(buttons.length ? ["Plain patterns (layer.head):", ...buttons] : []));
  }

  get patterns() {
    return this.inside.patterns[Number(byId("inside-layer").value)];
  }

  #drawHeads() {
    const n = this.inside.ids.length;
    this.head = Math.min(this.head, this.patterns.length - 1);
    const buttons = this.patterns.map(({ name, share }, head) => {
      const canvas = element("canvas", { width: n, height: n });
      drawWeights(canvas, this.weights.subarray(head * n * n, (head + 1) * n * n), n);
      const label = name ? `${name} ${percent(share)}` : "no plain pattern";
      const button = element(
        "button",
        { type: "button", class: "head", "aria-pressed": head === this.head, "aria-label": `Head ${head + 1}: ${label}` },
        canvas,
        element("span", { class: "head-number" }, `Head ${head + 1}`),
        element("span", { class: name ? "head-name" : "head-name quiet" }, label),
      );
      button.addEventListener("click", () => {
        this.head = head;
        for (const other of byId("inside-heads").children) other.setAttribute("aria-pressed", other === button);
        this.#choose(this.position);
      });
      return button;
    });
    byId("inside-heads").replaceChildren(...buttons);
  }

  #drawTokens() {
    const buttons = this.texts.map((text, i) => {
      const button = element(
        "span",
        { role: "button", class: "look", tabindex: i === this.position ? 0 : -1, "aria-label": visible(text) },
        text || "·",
      );
      button.addEventListener("click", () => this.#choose(i));
      button.addEventListener("focus", () => this.#choose(i));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        byId("inside-tokens").children[i + step]?.focus();
      });
      return button;
    });
    byId("inside-tokens").replaceChildren(...buttons);
  }

  // Shade each token by the weight that the token at `position` gives it, and list what the layers guess after it.
  #choose(position) {
    this.position = position;
    const n = this.inside.ids.length;
    const row = this.weights.subarray((this.head * n + position) * n, (this.head * n + position + 1) * n);
    [...byId("inside-tokens").children].forEach((button, i) => {
      button.style.setProperty("--weight", Math.sqrt(row[i] / 255));
      button.classList.toggle("looks", i === position);
      button.tabIndex = i === position ? 0 : -1;
    });
    const strongest = row.indexOf(Math.max(...row));
    byId("inside-where").replaceChildren(
      `Head ${this.head + 1}: `,
      element("q", {}, visible(this.texts[position])),
      " looks most at ",
      element("q", {}, visible(this.texts[strongest])),
      ` (${percent(row[strongest] / 255)})`,
    );
    this.#drawLens(position);
  }

  #drawLens(position) {
    byId("inside-lens-title").hidden = false;
    const actual = position + 1 < this.texts.length ? visible(this.texts[position + 1]) : null;
    const rows = this.inside.guesses.map((layer, i) => {
      const { id, probability, of_actual: ofActual } = layer[position];
      const bar = element("span", { class: "bar-now" });
      bar.style.setProperty("--share", probability);
      const right = actual !== null && id === this.inside.ids[position + 1];
      return element(
        "li",
        { class: right ? "right" : false },
        element("span", { class: "lens-layer" }, i === 0 ? "embedding" : `layer ${i}`),
        element("span", { class: "choice-text" }, visible(tokenText(this.vocabulary, id))),
        element("span", { class: "track" }, bar),
        element("span", { class: "choice-share" }, percent(probability)),
        element("span", { class: "lens-actual quiet" }, ofActual === null ? "" : `${actual}: ${percent(ofActual)}`),
      );
    });
    byId("inside-lens").replaceChildren(...rows);
  }
}

// A heat map: a row for the token that looks, a column for the one that is looked at. The root makes small ones visible.
function drawWeights(canvas, weights, n) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue("--heat").split(" ").map(Number);
  weights.forEach((weight, i) => image.data.set([r, g, b, 255 * Math.sqrt(weight / 255)], 4 * i));
  context.putImageData(image, 0, 0);
}
