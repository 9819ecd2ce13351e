// What the browser keeps between two visits: the text with its tokens, and the settings.

const KEY = "tiny_gpt playground 1";

export function load() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

// False if the browser keeps nothing, as in a private window, or has no room left.
export function save(values) {
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
    return true;
  } catch {
    return false;
  }
}
