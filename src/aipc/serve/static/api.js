// The server's API, asked from its own page.

import { ofTab } from "./store.js";

const KEY = "aipc.key";
const dialog = document.getElementById("key-dialog");
const keyField = document.getElementById("key");
let asking = null;

// What the server, or the way to it, said was wrong.
export class ApiError extends Error {}

// The response to a request. Where the server wants a key, the user is asked, unless `quiet`.
async function request(path, { quiet = false, ...options } = {}) {
  const key = ofTab.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw reachable(error);
  }
  if (response.ok) return response;
  if (response.status === 401 && !quiet && (await askForKey())) return request(path, options);
  throw new ApiError(await reason(response));
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

// The chunks of a chat's answer as they come.
export async function* chat(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(asked), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } catch (error) {
    throw reachable(error);
  }
}

function reachable(error) {
  if (error.name === "AbortError") return error;
  return new ApiError("The server can't be reached. Is aipc serve running?");
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with the status ${response.status}.`;
  }
}

// Whether the user gave a key; requests that come together ask once.
function askForKey() {
  asking ??= new Promise((resolve) => {
    const before = document.activeElement;
    keyField.value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const given = dialog.returnValue === "use";
        if (given) ofTab.setItem(KEY, keyField.value.trim());
        before?.focus();
        resolve(given);
      },
      { once: true },
    );
  });
  return asking;
}
