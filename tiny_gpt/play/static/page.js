// The page around the notebook: tabs, theme, keys.

import { byId } from "./dom.js";

// Tabs as the ARIA Authoring Practices have them: arrow keys move, the open panel is the one with the selected tab.
export function makeTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const listeners = [];
  const open = (tab) => {
    for (const other of tabs) {
      const isOpen = other === tab;
      other.setAttribute("aria-selected", String(isOpen));
      other.tabIndex = isOpen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !isOpen;
    }
    for (const listener of listeners) listener(tab.id.replace("tab-", ""));
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      open(next);
      next.focus();
    });
  }
  return { open: (name) => open(byId(`tab-${name}`)), onOpen: (listener) => listeners.push(listener) };
}

// The system's theme until a person chooses; the choice is kept. Returns a function that registers a redraw.
export function makeTheme() {
  const listeners = [];
  const key = "tiny_gpt playground theme";
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    for (const listener of listeners) listener();
  };
  try {
    const kept = localStorage.getItem(key);
    if (kept) apply(kept);
  } catch {
    // A browser that keeps nothing follows the system.
  }
  byId("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    apply(isDark ? "light" : "dark");
    try {
      localStorage.setItem(key, isDark ? "light" : "dark");
    } catch {
      // It lasts until the page is closed.
    }
  });
  return (listener) => listeners.push(listener);
}

export function listenToKeys(playground) {
  const area = byId("text");
  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", (event) => {
    const { key, altKey: alt } = event;
    const command = event.ctrlKey || event.metaKey;
    const inText = document.activeElement === area;
    if (event.isComposing) return;
    if (inText && key === "Tab" && !event.shiftKey && !alt && !command) playground.continue();
    else if (key === "Escape" && playground.writing) playground.stop();
    else if (key === "Escape" && inText) byId("continue").focus();
    else if (command && key.toLowerCase() === "z" && (inText || document.activeElement === document.body)) {
      playground.travel(event.shiftKey ? "redo" : "undo");
    } else if (command && key.toLowerCase() === "y" && inText) playground.travel("redo");
    else if (alt && key === "ArrowDown") {
      byId("tab-next").click();
      byId("bars").querySelector("button")?.focus();
    } else if (alt && /^[1-4]$/.test(key) && playground.alternatives.isOpen) playground.alternatives.keep(Number(key) - 1);
    else return;
    event.preventDefault();
  });
}
