// Conversations and settings in the browser's storage: a key for each conversation, so that two tabs that write
// different ones never meet.

const PREFIX = "aipc.conversation.";
const SETTINGS = "aipc.settings";

// In place of a storage that the browser denies: it ends with the page.
class Memory {
  #items = new Map();

  get length() {
    return this.#items.size;
  }

  key(index) {
    return [...this.#items.keys()][index] ?? null;
  }

  getItem(key) {
    return this.#items.get(key) ?? null;
  }

  setItem(key, text) {
    this.#items.set(key, text);
  }

  removeItem(key) {
    this.#items.delete(key);
  }
}

// A browser that keeps nothing for pages throws as soon as its storage is named.
function opened(name) {
  try {
    window[name].getItem(SETTINGS);
    return window[name];
  } catch {
    return new Memory();
  }
}

const lasting = opened("localStorage");

// What is forgotten when the tab closes.
export const ofTab = opened("sessionStorage");

// Whether conversations outlive the page.
export const keeps = !(lasting instanceof Memory);

// Of a conversation: id, revision (another one each time it is saved), title, changed (ms since the epoch),
// system, model, place (device and runtime, or null where the server chooses), messages with role, content and,
// for answers, figures or error.
export function newConversation({ system = "", model = "", place = null } = {}) {
  return { id: newId(), revision: "", title: "", changed: Date.now(), system, model, place, messages: [] };
}

// All of them, the last changed first.
export function conversations() {
  return Array.from({ length: lasting.length }, (_, index) => lasting.key(index))
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => parsed(lasting.getItem(key)))
    .filter((one) => Array.isArray(one?.messages))
    .sort((one, other) => other.changed - one.changed);
}

// The one that is kept under an id, or null.
export function find(id) {
  return parsed(lasting.getItem(PREFIX + id));
}

// Keeps a conversation. Where another tab has changed it since it was read here, both stay: this one under a new
// id. Throws QuotaExceededError where the browser has no room.
export function save(conversation) {
  const kept = find(conversation.id);
  if (kept && kept.revision !== conversation.revision) {
    conversation.id = newId();
    conversation.title += " (copy)";
  }
  const revision = newId();
  lasting.setItem(PREFIX + conversation.id, JSON.stringify({ ...conversation, revision }));
  conversation.revision = revision;
}

export function remove(conversation) {
  lasting.removeItem(PREFIX + conversation.id);
}

// Calls `changed` with the id of each conversation that another tab has changed or deleted.
export function watch(changed) {
  addEventListener("storage", ({ key }) => {
    if (key === null || key.startsWith(PREFIX)) changed(key?.slice(PREFIX.length));
  });
}

export function settings() {
  return parsed(lasting.getItem(SETTINGS)) ?? {};
}

export function saveSettings(values) {
  lasting.setItem(SETTINGS, JSON.stringify(values));
}

function newId() {
  // crypto.randomUUID is missing on pages without TLS.
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
