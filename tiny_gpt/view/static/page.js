// What the page does beyond showing: theme, reading the chart, the sample slider, copying, and, live, keeping up to date.
"use strict";
(() => {
  const root = document.documentElement;
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.classList.add("js");

  // Theme: auto, light, dark. A page opened as a file may have no storage.
  const remembered = (value) => {
    try {
      if (value !== undefined) localStorage.setItem("tiny_gpt-theme", value);
      return localStorage.getItem("tiny_gpt-theme");
    } catch { return value; }
  };
  const THEMES = ["auto", "light", "dark"];
  const setTheme = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    find("#theme span").textContent = theme;
  };
  setTheme(THEMES.includes(remembered()) ? remembered() : "auto");
  find("#theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(find("#theme span").textContent) + 1) % THEMES.length];
    remembered(next);
    setTheme(next);
  });

  // The chart: the evaluation or event nearest to the pointer, or chosen by arrow keys, in words.
  const figure = find("#loss-figure");
  const middle = (mark) => { const box = mark.getBoundingClientRect(); return box.left + box.width / 2; };
  const visible = (selector) => all(`.variant ${selector}`, figure).filter((mark) => mark.getClientRects().length);
  const closest = (marks, x) => marks.reduce(
    (best, mark) => (best && Math.abs(middle(best) - x) <= Math.abs(middle(mark) - x) ? best : mark), null);
  const read = (mark) => {
    all(".near", figure).forEach((other) => other.classList.remove("near"));
    find(".readout", figure).textContent = mark ? find("title", mark).textContent : "";
    if (mark) mark.classList.add("near");
  };
  const EVENT_PIXELS = 7;
  if (figure) {
    const point = ({ clientX }) => {
      const event = closest(visible(".event"), clientX);
      read(event && Math.abs(middle(event) - clientX) <= EVENT_PIXELS ? event : closest(visible(".dot"), clientX));
    };
    figure.addEventListener("pointermove", point);
    figure.addEventListener("pointerdown", point);
    figure.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const marks = visible(".dot, .event").sort((a, b) => middle(a) - middle(b));
      const at = marks.findIndex((mark) => mark.classList.contains("near"));
      read(marks[Math.min(Math.max(at < 0 ? marks.length - 1 : at + move, 0), marks.length - 1)]);
    });
  }

  // Samples: one at a time. The newest is followed until the reader goes to another one.
  const range = find("#sample-range"), play = find("#play"), list = find("#samples");
  let follows = true, timer = null;
  const samples = () => all(".sample", list);
  const stepOf = (sample) => Number(find("[data-step]", sample).dataset.step);
  const nearestTo = (step, elements, stepOfElement) => elements.reduce((best, element) => (
    best && Math.abs(stepOfElement(best) - step) <= Math.abs(stepOfElement(element) - step) ? best : element), null);
  const markInChart = () => {
    all(".sampled", figure).forEach((dot) => dot.classList.remove("sampled"));
    const shown = find(".sample.shown", list);
    if (!shown) return;
    all(".variant", figure).forEach((variant) => {
      const dots = all(".dot", variant), stepOfDot = (dot) => Number(dot.dataset.step);
      const dot = nearestTo(stepOf(shown), dots, stepOfDot);
      if (dot && stepOf(shown) >= stepOfDot(dots[0])) dot.classList.add("sampled");
    });
  };
  const show = (index) => {
    const found = samples();
    const at = Math.min(Math.max(index, 0), found.length - 1);
    found.forEach((sample, i) => sample.classList.toggle("shown", i === at));
    range.max = String(Math.max(0, found.length - 1));
    range.value = String(at);
    range.setAttribute("aria-valuetext", found[at] ? find(".about", found[at]).textContent : "");
    find(".slider").hidden = !found.length;
    find("#sample-label").textContent = found.length ? `${at + 1} of ${found.length}` : "";
    follows = at === found.length - 1;
    markInChart();
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  if (range) {
    range.addEventListener("input", () => { stop(); show(Number(range.value)); });
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (Number(range.value) >= samples().length - 1) show(0);
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        show(Number(range.value) + 1);
        if (Number(range.value) >= samples().length - 1) stop();
      }, 900);
    });
    const go = (by) => { stop(); show(Number(range.value) + by); };
    list.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) { event.preventDefault(); go(move); }
    });
    let startX = null, startY = null;
    list.addEventListener("touchstart", (event) => {
      [startX, startY] = [event.touches[0].clientX, event.touches[0].clientY];
    }, { passive: true });
    list.addEventListener("touchend", (event) => {
      if (startX === null) return;
      const x = event.changedTouches[0].clientX - startX, y = event.changedTouches[0].clientY - startY;
      startX = null;
      if (Math.abs(x) > 40 && Math.abs(x) > 2 * Math.abs(y)) go(x < 0 ? 1 : -1);
    });
    // The chart leads to what was written there.
    figure.addEventListener("click", ({ clientX }) => {
      const dot = closest(visible(".dot"), clientX);
      const sample = dot && nearestTo(Number(dot.dataset.step), samples(), stepOf);
      if (sample) { stop(); show(samples().indexOf(sample)); }
    });
    show(samples().length - 1);
  }

  // Copying a command; without permission it is selected instead.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const code = find("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  });

  if (!document.body.dataset.live) return;

  // Live: ask for the parts that have changed, while somebody looks.
  // A training writes its status every five seconds.
  const INTERVAL_MS = 5000, SLOW_MS = 10000;
  let offset_s = Number(document.body.dataset.live) - Date.now() / 1000;
  let waiting = null, failures = 0, version = "";
  const words = (seconds) => {
    if (seconds < 5) return "just now";
    if (seconds < 90) return `${Math.round(seconds)} s ago`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
    return `${Math.round(seconds / 3600)} h ago`;
  };
  const tick = () => all("time[data-at]").forEach((time) => {
    time.textContent = words(Math.max(0, Date.now() / 1000 + offset_s - Number(time.dataset.at)));
  });
  const say = (text) => {
    const line = find("#connection");
    line.hidden = !text;
    line.textContent = text;
  };
  const have = {};
  const replace = (part, html) => {
    const open = all("details[open]", part).map((details) => details.id);
    const near = all(".dot, .event", part).findIndex((mark) => mark.classList.contains("near"));
    part.innerHTML = html;
    open.forEach((id) => { const details = id && document.getElementById(id); if (details) details.open = true; });
    const again = near >= 0 && all(".dot, .event", part)[near];
    if (again) again.classList.add("near");
  };
  const apply = (parts) => {
    for (const [id, { hash, html }] of Object.entries(parts)) {
      let part = all("[data-part]").find((element) => element.dataset.part === id);
      if (!part && id.startsWith("sample-")) {
        part = document.createElement("li");
        part.className = "sample";
        part.dataset.part = id;
        list.append(part);
      }
      if (part) replace(part, html);
      have[id] = hash;
    }
    if (Object.keys(parts).some((id) => id.startsWith("sample-"))) {
      show(follows && !timer ? samples().length - 1 : Number(range.value));
    } else markInChart();
    tick();
  };
  const poll = async () => {
    clearTimeout(waiting);
    if (document.hidden) return;
    const axis = find("input[name=axis]:checked").value;
    const size = matchMedia("(max-width: 700px)").matches ? "narrow" : "wide";
    try {
      const known = Object.entries(have).map(([id, hash]) => `${id}:${hash}`).join(",");
      const query = new URLSearchParams({ axis, size, version, have: known });
      const answer = await fetch(`/state?${query}`, { signal: AbortSignal.timeout(20000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const state = await answer.json();
      offset_s = state.now - Date.now() / 1000;
      version = state.version;
      apply(state.parts);
      failures = 0;
      say("");
    } catch {
      failures += 1;
      if (failures > 1) say("The server does not answer. It may have ended with the training; this page continues when it is back.");
    }
    waiting = setTimeout(poll, failures > 1 ? SLOW_MS : INTERVAL_MS);
  };
  document.addEventListener("visibilitychange", poll);
  matchMedia("(max-width: 700px)").addEventListener("change", poll);
  all("input[name=axis]").forEach((input) => input.addEventListener("change", poll));
  setInterval(tick, 1000);
  tick();
  poll();
})();
