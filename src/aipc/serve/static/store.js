// Conversations and settings in the browser's storage: a key for each, so that two tabs don't overwrite all.

const PREFIX = "aipc.conversation.";
const SETTINGS = "aipc.settings";

// Of a conversation: id, title, changed (ms since the epoch), system, messages with role, content and, for
// answers, figures or error.
export function newConversation(system = "") {
  // crypto.randomUUID is missing on pages without TLS.
  const id = Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
  return { id, title: "", changed: Date.now(), system, messages: [] };
}

// All of them, the last changed first.
export function conversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => parsed(localStorage.getItem(key)))
    .filter((one) => Array.isArray(one?.messages))
    .sort((one, other) => other.changed - one.changed);
}

// Throws QuotaExceededError where the browser has no room.
export function save(conversation) {
  localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
}

export function remove(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

export function settings() {
  return parsed(localStorage.getItem(SETTINGS)) ?? {};
}

export function saveSettings(values) {
  localStorage.setItem(SETTINGS, JSON.stringify(values));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
