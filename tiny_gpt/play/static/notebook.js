// The notebook's text as items, and its history. An item is a token {id, bits, next, text, pending} or, where a person
// has typed and nothing was scored yet, raw text {id: null, text}. `next` is what the token was drawn from, if known.
//
// `text` of an item is what its bytes complete: nothing for the first bytes of a character, all of it for the last.
// `pending` are the bytes that wait for the next token. So nothing is lost where a character is several tokens.

const MAX_STATES = 300;

export class Notebook {
  constructor(vocabulary) {
    this.vocabulary = vocabulary; // each token's bytes as a string with one character per byte
    this.items = [];
    this.past = [];
    this.future = [];
  }

  get text() {
    return this.items.map((item) => item.text).join("");
  }

  // The ids of all items; null while something is raw.
  get ids() {
    const ids = this.items.map((item) => item.id);
    return ids.includes(null) ? null : ids;
  }

  // Characters up to the end of the last raw item: what still has to be scored.
  get rawEnd() {
    let offset = 0;
    let end = 0;
    for (const item of this.items) {
      offset += item.text.length;
      if (item.id === null) end = offset;
    }
    return end;
  }

  // Remember the present state for undo; call it before a change.
  remember() {
    this.past.push(this.items.slice());
    if (this.past.length > MAX_STATES) this.past.shift();
    this.future = [];
  }

  undo() {
    return this.#travel(this.past, this.future);
  }

  redo() {
    return this.#travel(this.future, this.past);
  }

  #travel(from, to) {
    if (from.length === 0) return false;
    to.push(this.items.slice());
    this.items = from.pop();
    return true;
  }

  // The text as a person edited it: items before the change stay, the rest becomes raw.
  edit(text) {
    const kept = [];
    let offset = 0;
    for (const item of this.items) {
      const end = offset + item.text.length;
      if (item.id === null || text.slice(offset, end) !== item.text) break;
      kept.push(item);
      offset = end;
    }
    // Half a character at the end would be lost on the way to the server.
    while (kept.length && kept.at(-1).text === "" && kept.at(-1).pending) kept.pop();
    if (offset < text.length) kept.push({ id: null, text: text.slice(offset) });
    this.items = kept;
  }

  // Replace everything up to character `end` by scored tokens; false if their texts do not add up to it.
  score(end, ids, bits) {
    const scored = pieces(this.vocabulary, ids).map((piece, i) => ({ ...piece, bits: bits[i], next: null }));
    const before = this.text.slice(0, end);
    if (scored.map((item) => item.text).join("") !== before) return false;
    let offset = 0;
    let index = 0;
    while (index < this.items.length && offset + this.items[index].text.length <= end) {
      offset += this.items[index].text.length;
      index += 1;
    }
    const old = this.items.slice(0, index);
    // The same tokens as before keep what is known of them.
    for (let i = 0; i < scored.length && i < old.length && old[i].id === scored[i].id; i++) scored[i] = old[i];
    this.items = [...scored, ...this.items.slice(index)];
    return true;
  }

  // Append a token; returns its item.
  append({ id, bits, next }) {
    const item = { ...piece(this.vocabulary, id, this.items.at(-1)?.pending), bits, next };
    this.items.push(item);
    return item;
  }

  // The first item of the character before which the caret is, where that begins, and the item that shows it. At the
  // end of the text there is none.
  at(offset) {
    let start = 0;
    let first = 0;
    for (let shown = 0; shown < this.items.length; shown++) {
      const { text, pending } = this.items[shown];
      if (offset < start + text.length) return { index: first, shown, start, item: this.items[first] };
      start += text.length;
      if (text || !pending) first = shown + 1;
    }
    return { index: this.items.length, shown: this.items.length, start, item: null };
  }
}

// The text that each token completes.
export function textsOf(vocabulary, ids) {
  return pieces(vocabulary, ids).map((each) => each.text);
}

function pieces(vocabulary, ids) {
  const all = [];
  for (const id of ids) all.push(piece(vocabulary, id, all.at(-1)?.pending));
  return all;
}

// What a token's bytes complete after the `pending` ones, and which of them wait for the next token.
function piece(vocabulary, id, pending = "") {
  const all = pending + vocabulary[id];
  let n = Math.min(3, all.length);
  while (n > 0 && !isBegun(all.slice(-n))) n -= 1;
  return { id, text: decoded(all.slice(0, all.length - n)), pending: all.slice(all.length - n) };
}

// Whether bytes are the beginning of one character, and no more.
const isBegun = (token) => makeDecoder().decode(toBytes(token), { stream: true }) === "";

// As a text without what comes before it: for lists of tokens.
export function tokenText(vocabulary, id) {
  const text = makeDecoder().decode(toBytes(vocabulary[id]));
  return /^\uFFFD+$/.test(text) ? hex(vocabulary[id]) : text;
}

const makeDecoder = () => new TextDecoder("utf-8", { ignoreBOM: true });
const decoded = (token) => plain(makeDecoder().decode(toBytes(token)));
const toBytes = (token) => Uint8Array.from(token, (character) => character.charCodeAt(0));
const hex = (token) => `<${[...token].map((c) => c.charCodeAt(0).toString(16).padStart(2, "0")).join(" ")}>`;
// A text area turns line ends of Windows into one character; so do we, or places would not agree.
const plain = (text) => text.replaceAll("\r", "");
