// The panel "Check": how well the model predicts a text, and which spans of it occur in the training text.

import { postJson } from "./api.js";
import { byId, element, number } from "./dom.js";
import { textsOf } from "./notebook.js";
import { level } from "./paper.js";

const MAX_LISTED = 12;
const MAX_QUOTE = 90;

export class CheckPanel {
  // `notebookText()` and `snapshot()` are asked when they are needed.
  constructor(vocabulary, hasTrainingText, notebookText, snapshot) {
    Object.assign(this, { vocabulary, hasTrainingText, snapshot });
    byId("check").addEventListener("click", () => this.score());
    byId("check-notebook").addEventListener("click", () => {
      byId("check-text").value = notebookText();
      this.score();
    });
    byId("check-text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.score();
    });
  }

  async score() {
    const text = byId("check-text").value;
    const figure = byId("check-figure");
    if (!text) {
      figure.textContent = "Paste a text first.";
      return;
    }
    figure.textContent = "Scoring…";
    try {
      this.#show(text, await postJson("/play/score", { text, whole: true, snapshot: this.snapshot() }));
    } catch (error) {
      figure.textContent = error.message;
    }
  }

  #show(text, scored) {
    const { ids, bits, bits_per_byte: figure, n_bytes: nBytes, copied } = scored;
    const meaning = figure === null ? "" : ` To the model, each byte is like one of ${(2 ** figure).toFixed(1)}.`;
    byId("check-figure").replaceChildren(
      element("strong", {}, figure === null ? "too short" : figure.toFixed(3)),
      figure === null ? " A score takes two tokens." : " bits per byte",
    );
    byId("check-note").textContent = `${number(nBytes)} bytes, ${number(ids.length)} tokens.${meaning} ${this.#about(text, copied)}`;
    const texts = textsOf(this.vocabulary, ids);
    byId("check-result").replaceChildren(...marked(texts, bits, copied));
    byId("check-copied").replaceChildren(...copied.slice(0, MAX_LISTED).map((span) => listed(text, span)));
  }

  #about(text, copied) {
    if (!this.hasTrainingText) {
      return "The training text is not on this computer, so copied passages cannot be shown.";
    }
    if (copied.length === 0) return "No longer passage of it occurs in the training text.";
    const n = copied.reduce((all, span) => all + span.end - span.start, 0);
    return `${Math.round((100 * n) / text.length)}% of it occurs in the training text (underlined).`;
  }
}

// The text as colored tokens, cut where a copied span begins or ends.
function marked(texts, bits, copied) {
  const spans = [];
  let offset = 0;
  let next = 0;
  texts.forEach((text, i) => {
    let rest = text;
    while (rest) {
      while (next < copied.length && copied[next].end <= offset) next += 1;
      const span = copied[next];
      const inside = span && span.start <= offset;
      const limit = span ? (inside ? span.end : span.start) - offset : rest.length;
      const part = rest.slice(0, Math.max(1, limit));
      const title = `${bits[i].toFixed(1)} bits`;
      spans.push(element("span", { class: `token s${level(bits[i])}${inside ? " copy" : ""}`, title }, part));
      rest = rest.slice(part.length);
      offset += part.length;
    }
  });
  return spans;
}

function listed(text, span) {
  const words = text.slice(span.start, span.end).trim();
  const quote = words.length > MAX_QUOTE ? `${words.slice(0, MAX_QUOTE)}…` : words;
  return element("li", {}, element("q", {}, quote), element("span", { class: "quiet" }, ` line ${number(span.line)} of the training text`));
}
