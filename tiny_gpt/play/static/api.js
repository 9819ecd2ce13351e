// Requests to the server. A stream is read as lines of JSON: chunks of the network may end anywhere, within a line,
// a token or a character, so bytes are decoded and split only as far as they are complete.

export class ServerError extends Error {}

export async function getJson(path) {
  return (await answer(fetch(path))).json();
}

export async function postJson(path, body, signal) {
  return (await answer(post(path, body, signal))).json();
}

// Yields each object of a stream of JSON lines.
export async function* postLines(path, body, signal) {
  const response = await answer(post(path, body, signal));
  for await (const line of lines(response.body)) {
    const event = JSON.parse(line);
    if (event.error) throw new ServerError(event.error.message);
    yield event;
  }
}

// The complete lines of a stream of UTF-8 bytes, however they are cut into chunks.
export async function* lines(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const complete = rest.split("\n");
      rest = complete.pop();
      for (const line of complete) if (line) yield line;
      if (done) break;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is tiny-gpt still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ServerError(body?.error?.message ?? `The server answered ${response.status}.`);
}
