// The panel "Next token": the ten likeliest tokens at a place of the text, under the present settings.

import { byId, element, number, percent, visible } from "./dom.js";
import { tokenText } from "./notebook.js";
import { distribution, ownDistribution, unpack } from "./sampling.js";

const N_BARS = 10;
const MAX_CONTEXT = 28;
// The bars end at the first of these that is large enough for all of them.
const SCALES = [0.1, 0.25, 0.5, 1];

export class NextPanel {
  // `onChoose(id, bits, summary)`: the user branches to a token.
  constructor(vocabulary, settings, onChoose) {
    this.vocabulary = vocabulary;
    this.settings = settings;
    this.onChoose = onChoose;
    this.summary = null;
    settings.onChange(() => this.draw());
    window.addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // `context` is the text before the place, `chosen` the id of the token there, if any.
  show(summary, context, chosen = null) {
    this.summary = summary;
    this.chosen = chosen;
    const where = byId("next-where");
    const before = context.length > MAX_CONTEXT ? `…${context.slice(-MAX_CONTEXT)}` : context;
    const name = before ? element("q", {}, visible(before)) : "the start of a line";
    where.replaceChildren(chosen === null ? "What comes after " : "Instead, after ", name);
    this.draw();
  }

  clear(message) {
    this.summary = null;
    byId("next-where").textContent = message;
    byId("next-summary").textContent = "";
    byId("bars").replaceChildren();
    this.draw();
  }

  draw() {
    const canvas = byId("curve");
    canvas.hidden = this.summary === null;
    if (this.summary === null) return;
    const { ids } = unpack(this.summary);
    const own = ownDistribution(this.summary);
    const now = distribution(this.summary, this.settings.sampling);
    const most = Math.max(...own.probabilities.slice(0, N_BARS), ...now.probabilities.slice(0, N_BARS));
    this.scale = SCALES.find((scale) => most <= scale) ?? 1;
    const focused = document.activeElement?.dataset?.rank;
    const rows = [...ids.slice(0, N_BARS)].map((id, rank) => this.#row(id, rank, own.probabilities, now.probabilities));
    const rank = this.chosen === null ? -1 : ids.indexOf(this.chosen);
    if (rank >= N_BARS) rows.push(this.#row(this.chosen, rank, own.probabilities, now.probabilities));
    byId("bars").replaceChildren(...rows);
    if (focused !== undefined) byId("bars").querySelector(`[data-rank="${focused}"]`)?.focus();
    byId("next-summary").textContent = this.#sentence(now, rank);
    drawCurve(canvas, own.probabilities, now.probabilities);
  }

  #row(id, rank, own, now) {
    const text = visible(tokenText(this.vocabulary, id));
    const probability = now[rank] > 0 ? percent(now[rank]) : "out";
    const bar = element("span", { class: "bar-now" });
    const mark = element("span", { class: "bar-own" });
    bar.style.setProperty("--share", now[rank] / this.scale);
    mark.style.setProperty("--share", own[rank] / this.scale);
    const label = `${text}, ${now[rank] > 0 ? percent(now[rank]) : "ruled out"}; the model says ${percent(own[rank])}`;
    const button = element(
      "button",
      {
        type: "button",
        "data-rank": rank,
        "data-id": id,
        "data-probability": now[rank],
        "aria-label": label,
        title: "Branch here",
        class: `choice${now[rank] > 0 ? "" : " out"}${id === this.chosen ? " chosen" : ""}`,
        "aria-current": id === this.chosen ? "true" : false,
      },
      element("span", { class: "choice-text" }, text),
      element("span", { class: "track" }, bar, mark),
      element("span", { class: "choice-share" }, probability),
    );
    button.addEventListener("click", () => this.onChoose(id, -Math.log2(own[rank]), this.summary));
    button.addEventListener("keydown", (event) => moveFocus(event, button));
    return element("li", {}, button);
  }

  #sentence(now, rank) {
    const choices = 2 ** now.entropy;
    const place = rank >= 0 ? ` The token in the text is number ${number(rank + 1)}.` : "";
    const allowed = `${number(now.allowed)} of ${number(this.vocabulary.length)} tokens can be drawn`;
    return `${allowed}, as hard to guess as ${choices.toFixed(choices < 10 ? 1 : 0)} equal ones. Bars end at ${100 * this.scale}%.${place}`;
  }
}

// Arrow keys walk through the list; Escape returns to the text.
function moveFocus(event, button) {
  const all = [...byId("bars").querySelectorAll("button")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) all[(all.indexOf(button) + step + all.length) % all.length].focus();
  else if (event.key === "Escape") byId("text").focus();
  else return;
  event.preventDefault();
}

// Probabilities by rank, both axes compressed so that the tail can be seen: the model's own as a line, what is drawn
// from as an area.
function drawCurve(canvas, own, now) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const x = (rank) => (Math.log2(1 + rank) / Math.log2(own.length + 1)) * width;
  const most = Math.max(own[0], ...now);
  const y = (p) => height - Math.sqrt(p / most) * (height - 4) - 1;
  context.beginPath();
  context.moveTo(0, height);
  now.forEach((p, rank) => {
    context.lineTo(x(rank), y(p));
    context.lineTo(x(rank + 1), y(p));
  });
  context.lineTo(width, height);
  context.fillStyle = style.getPropertyValue("--accent-soft");
  context.fill();
  context.beginPath();
  own.forEach((p, rank) => {
    context.lineTo(x(rank), y(p));
    context.lineTo(x(rank + 1), y(p));
  });
  context.strokeStyle = style.getPropertyValue("--quiet");
  context.lineWidth = 1;
  context.stroke();
}
