// A link that carries a prompt, a seed and settings in its fragment, which browsers never send to a server.

const NUMBERS = ["seed", "temperature", "top_k", "top_p", "min_p", "max_tokens", "n"];

// {prompt, model, seed, temperature, ...} -> "#prompt=...&seed=1&..."
export function toFragment(values) {
  const fields = new URLSearchParams({ prompt: values.prompt });
  for (const name of NUMBERS) fields.set(name, values[name]);
  if (values.model) fields.set("model", values.model);
  return `#${fields}`;
}

// The inverse; null if the fragment is none of ours. What is no number is left out.
export function fromFragment(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!fields.has("prompt")) return null;
  const values = { prompt: fields.get("prompt"), model: fields.get("model") ?? "" };
  for (const name of NUMBERS) {
    const value = fields.get(name);
    if (value !== null && value.trim() !== "" && Number.isFinite(Number(value))) values[name] = Number(value);
  }
  return values;
}

export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
