// The playground: makes the parts, and carries what a person does from one to another.

import { getJson, postJson, postLines } from "./api.js";
import { Alternatives } from "./alternatives.js";
import { CheckPanel } from "./check_panel.js";
import { byId, debounce, number, say } from "./dom.js";
import { InsidePanel } from "./inside_panel.js";
import { listenToKeys, makeTabs, makeTheme } from "./page.js";
import { NextPanel } from "./next_panel.js";
import { NightPanel, describe } from "./night_panel.js";
import { Notebook } from "./notebook.js";
import { drawScale, select, showAll, showAppended, showColors } from "./paper.js";
import { Settings } from "./settings.js";
import { download, fromFragment, toFragment } from "./share.js";
import * as store from "./store.js";

// A text longer than this is scored from so many characters before its end.
const MAX_SCORED = 8000;
const TYPING_PAUSE_MS = 500;
const area = byId("text");

class Playground {
  constructor(model, vocabulary) {
    this.model = model;
    this.snapshot = model.snapshots.at(-1);
    this.notebook = new Notebook(vocabulary);
    this.settings = new Settings(model.defaults, model.limits);
    this.alternatives = new Alternatives(vocabulary, (items) => this.#keep(items));
    this.next = new NextPanel(vocabulary, this.settings, (...choice) => this.#branch(...choice));
    this.night = new NightPanel(vocabulary, model.snapshots, this.settings, () => this.prompt ?? area.value, (snapshot) => {
      this.snapshot = snapshot;
      this.#nameModel();
      this.lookAtCaret();
    });
    const key = () => this.snapshot.key;
    this.check = new CheckPanel(vocabulary, model.has_training_text, () => area.value, key);
    this.inside = new InsidePanel(vocabulary, model.n_layer, () => this.scoredIds(), key);
    this.prompt = null; // what stood in the notebook before the last continuation
    this.writing = null;
    this.keepLater = debounce(() => this.#store(), 300);
    this.scoreLater = debounce(() => this.#scoreAndLook(), TYPING_PAUSE_MS);
    this.lookLater = debounce(() => this.lookAtCaret(), 60);
    this.settings.onChange(() => this.keepLater());
    this.#listen();
    this.#restore();
    this.#nameModel();
  }

  #listen() {
    area.addEventListener("input", () => this.#typed());
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === area && !this.writing) this.lookLater();
    });
    byId("continue").addEventListener("click", () => this.continue());
    byId("stop").addEventListener("click", () => this.stop());
    byId("undo").addEventListener("click", () => this.travel("undo"));
    byId("redo").addEventListener("click", () => this.travel("redo"));
    byId("colors").addEventListener("change", (event) => showColors(event.target.checked));
    byId("save").addEventListener("click", () => download(`${this.model.name}.txt`, area.value));
    byId("share").addEventListener("click", () => this.share());
    byId("edit").addEventListener("click", () => this.#setReading(!area.readOnly));
    window.addEventListener("hashchange", () => this.#openLink());
    window.addEventListener("pagehide", () => this.#store());
  }

  // --- what a person does ---

  #typed() {
    if (this.writing) this.stop();
    if (!this.scoringPending) this.notebook.remember();
    this.scoringPending = true;
    this.notebook.edit(area.value);
    this.prompt = null;
    this.#changed();
    this.scoreLater();
  }

  // Continue the text in as many ways as the settings say.
  async continue() {
    if (this.writing) return;
    this.#dropAlternatives();
    const sampling = { ...this.settings.sampling, seed: this.settings.takeSeed() };
    this.prompt = area.value;
    const request = { ...sampling, text: area.value, snapshot: this.snapshot.key };
    if (sampling.n > 1) await this.#write(request, (event) => this.alternatives.add(event));
    else await this.#writeInto(request);
  }

  stop() {
    this.writing?.abort();
  }

  travel(direction) {
    this.stop();
    this.#dropAlternatives();
    if (!this.notebook[direction]()) return;
    this.prompt = null;
    this.#changed(this.notebook.text.length);
    this.#scoreAndLook();
  }

  // Replace the token at the caret, and all that follows, by another one; then write on from there.
  async #branch(id, bits, summary) {
    this.stop();
    this.#dropAlternatives();
    const index = this.place?.index ?? this.notebook.items.length;
    this.notebook.remember();
    this.notebook.items = this.notebook.items.slice(0, index);
    this.notebook.append({ id, bits, next: summary });
    this.prompt = null;
    this.#changed(this.notebook.text.length);
    area.focus({ preventScroll: true });
    const ids = this.notebook.ids;
    const sampling = { ...this.settings.sampling, n: 1, seed: this.settings.takeSeed() };
    const start = ids ? { ids: ids.slice(-this.model.block_size) } : { text: this.notebook.text };
    await this.#writeInto({ ...sampling, ...start, snapshot: this.snapshot.key }, true);
  }

  #keep(items) {
    this.stop();
    this.notebook.remember();
    this.notebook.items.push(...items);
    this.alternatives.clear();
    this.#changed(this.notebook.text.length);
    area.focus();
    this.#scoreAndLook();
  }

  #dropAlternatives() {
    this.stop();
    this.alternatives.clear();
  }

  async share() {
    const values = { ...this.settings.sampling, prompt: this.prompt ?? area.value, model: this.model.name };
    history.replaceState(null, "", toFragment(values));
    try {
      await navigator.clipboard.writeText(location.href);
      say("Link copied. It holds the prompt, the seed and the settings; Continue then writes the same text.");
    } catch {
      say("The address of this page now holds the prompt, the seed and the settings; copy it from the address bar.");
    }
  }

  // --- writing ---

  async #writeInto(request, isRemembered = false) {
    if (!isRemembered) this.notebook.remember();
    await this.#write(request, (event) => {
      this.notebook.append(event);
      showAppended(this.notebook);
      this.#count();
    });
    this.#changed(this.notebook.text.length);
    await this.#scoreAndLook();
  }

  // One stream of tokens; `take` gets each.
  async #write(request, take) {
    const stop = new AbortController();
    this.writing = stop;
    this.#showWriting(true);
    say("Writing…");
    const start = performance.now();
    let n = 0;
    try {
      for await (const event of postLines("/play/continue", request, stop.signal)) {
        if (stop.signal.aborted) break;
        if (event.done) continue;
        n += 1;
        take(event);
      }
      const seconds = (performance.now() - start) / 1000;
      say(`${number(n)} tokens in ${seconds.toFixed(1)} s, seed ${request.seed}.`);
    } catch (error) {
      if (error.name === "AbortError") say(`Stopped after ${number(n)} tokens.`);
      else say(error.message, true);
    } finally {
      if (this.writing === stop) this.writing = null;
      this.#showWriting(false);
    }
  }

  #showWriting(isWriting) {
    byId("stop").hidden = !isWriting;
    byId("continue").hidden = isWriting;
    document.body.classList.toggle("writing", isWriting);
  }

  // --- scoring and looking ---

  // The ids of the whole notebook, after what was typed has been scored; null if that fails.
  async scoredIds() {
    await this.#score();
    return this.notebook.ids;
  }

  async #score() {
    this.scoreLater.cancel();
    this.scoringPending = false;
    const end = this.notebook.rawEnd;
    if (end === 0) return;
    const text = this.notebook.text.slice(0, end);
    if (text.length > MAX_SCORED && this.notebook.items.length > 1) {
      say("A long text: only its own tokens are colored, not what was typed.");
      return;
    }
    try {
      const { ids, bits } = await postJson("/play/score", { text, snapshot: this.snapshot.key });
      if (this.notebook.text.slice(0, end) !== text || this.notebook.rawEnd !== end) return; // typed on meanwhile
      if (this.notebook.score(end, ids, bits)) this.#changed();
    } catch (error) {
      say(error.message, true);
    }
  }

  async #scoreAndLook() {
    await this.#score();
    await this.lookAtCaret();
  }

  // Show the likeliest tokens at the caret: instead of the token there, or after the text.
  async lookAtCaret() {
    if (this.writing || this.alternatives.isOpen) return;
    const place = this.notebook.at(area.selectionStart);
    this.place = place;
    const before = this.notebook.items.slice(0, place.index);
    if (before.some((item) => item.id === null) || place.item?.id === null) return; // it will be scored soon
    select(place.shown);
    const context = this.notebook.text.slice(0, place.start);
    const key = `${this.snapshot.key}:${before.map((item) => item.id).slice(-this.model.block_size)}`;
    let summary = this.snapshot === this.model.snapshots.at(-1) ? place.item?.next : null;
    if (!summary) {
      if (this.lastNext?.key !== key) {
        const ids = before.map((item) => item.id).slice(-this.model.block_size);
        try {
          this.lastNext = { key, summary: await postJson("/play/next", { ids, snapshot: this.snapshot.key }) };
        } catch (error) {
          this.next.clear(error.message);
          return;
        }
        if (this.place !== place) return; // the caret has moved meanwhile
      }
      summary = this.lastNext.summary;
    }
    this.next.show(summary, context, place.item?.id ?? null);
  }

  // --- what is shown and kept ---

  #changed(caret = null) {
    showAll(this.notebook, caret);
    byId("undo").disabled = this.notebook.past.length === 0;
    byId("redo").disabled = this.notebook.future.length === 0;
    this.#count();
    this.keepLater();
  }

  #count() {
    const scored = this.notebook.items.filter((item) => item.id !== null);
    const bits = scored.reduce((all, item) => all + item.bits, 0);
    const mean = scored.length ? `, ${(bits / scored.length).toFixed(1)} bits each` : "";
    byId("count").textContent = scored.length ? `${number(scored.length)} tokens${mean}` : "";
  }

  #nameModel() {
    const { name, architecture, n_parameters: n, snapshots } = this.model;
    const size = n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : `${Math.round(n / 1e3)} k`;
    const which = this.snapshot === snapshots.at(-1) && snapshots.length === 1 ? "" : ` · ${describe(this.snapshot)}`;
    byId("model").textContent = `${name} · ${architecture}, ${size} parameters${which}`;
    document.title = `${name}: tiny_gpt playground`;
  }

  #setReading(isReading) {
    area.readOnly = isReading;
    byId("edit").setAttribute("aria-pressed", String(!isReading));
    byId("edit").textContent = isReading ? "Edit text" : "Tap tokens";
    if (!isReading) area.focus();
  }

  #store() {
    const tokens = this.notebook.items.map((item) => (item.id === null ? item.text : [item.id, item.bits]));
    const kept = { model: this.model.fingerprint, text: this.notebook.text, tokens, settings: this.settings.saved };
    if (!store.save(kept)) say("This browser keeps nothing: save the text as a file before you leave.", true);
  }

  #restore() {
    const kept = store.load();
    if (kept.settings) this.settings.set(kept.settings);
    if (kept.model === this.model.fingerprint && Array.isArray(kept.tokens)) {
      for (const token of kept.tokens) {
        if (typeof token === "string") this.notebook.items.push({ id: null, text: token });
        else this.notebook.append({ id: token[0], bits: token[1], next: null });
      }
    } else if (kept.text) this.notebook.edit(kept.text);
    if (!this.#openLink()) this.#changed(this.notebook.text.length);
    this.#setReading(matchMedia("(pointer: coarse)").matches && this.notebook.text !== "");
    this.#scoreAndLook();
  }

  #openLink() {
    const link = fromFragment(location.hash);
    if (!link) return false;
    if (this.notebook.text) this.notebook.remember();
    this.notebook.edit(link.prompt);
    this.settings.set({ ...link, new_seed: false });
    this.#changed(link.prompt.length);
    const other = link.model && link.model !== this.model.name ? ` It was made with another model (${link.model}).` : "";
    say(`Opened from a link; Continue writes its text.${other}`);
    this.#scoreAndLook();
    return true;
  }
}

async function start() {
  drawScale();
  const tabs = makeTabs();
  const redraw = makeTheme();
  try {
    const [model, vocabulary] = await Promise.all([getJson("/play/model"), getJson("/play/vocabulary")]);
    const playground = new Playground(model, vocabulary);
    tabs.onOpen((name) => name === "night" && playground.night.write());
    redraw(() => playground.next.draw());
    listenToKeys(playground);
    document.body.dataset.ready = "true";
  } catch (error) {
    say(error.message, true);
  }
}

start();
