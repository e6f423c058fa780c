// Which conversation is open, and the list of all that the browser keeps.

import { at, button, element } from "./dom.js";
import { closePanels } from "./panels.js";
import * as store from "./store.js";

let open = store.conversations()[0] ?? store.newConversation(store.settings());
let locked = false;
let show = () => {};
let isEdited = () => false;

export const current = () => open;

// shown     called with the conversation that is to be shown from now on
// edited    whether someone is writing in what is shown
export function listen({ shown, edited }) {
  show = shown;
  isEdited = edited;
  store.watch(changedElsewhere);
  at("new").addEventListener("click", () => change(store.newConversation(open)));
  at("export").addEventListener("click", download);
  at("delete").addEventListener("click", remove);
  if (!store.keeps) notice("This browser keeps nothing for this page: conversations end when it is closed. Export saves one.");
  change(open);
}

// While an answer comes, no other conversation is opened.
export function lock(on) {
  locked = on;
  showList();
}

export function keep(conversation) {
  conversation.changed = Date.now();
  try {
    store.save(conversation);
  } catch {
    notice("The browser has no room for this conversation. Export it, or delete others.");
  }
  showList();
}

export function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function change(conversation) {
  open = conversation;
  closePanels();
  show(open);
  showList();
  at("question").focus();
}

function showList() {
  const items = store.conversations().map((one) => {
    const opener = button(one.title || "Untitled", () => change(one));
    if (one.id === open.id) opener.setAttribute("aria-current", "true");
    opener.disabled = locked;
    return element("li", [opener]);
  });
  at("conversation-list").replaceChildren(...items);
}

// Another tab has changed or deleted a conversation, or all where `id` is undefined. What is written here stays; when
// it is kept, it becomes a conversation of its own.
function changedElsewhere(id) {
  if (!locked && !isEdited() && (id === undefined || id === open.id)) {
    open = store.find(open.id) ?? (open.messages.length ? store.newConversation(open) : open);
    show(open);
  }
  showList();
}

function download() {
  const blob = new Blob([JSON.stringify(open, null, 2)], { type: "application/json" });
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = `aipc-${new Date(open.changed).toISOString().slice(0, 10)}-${open.id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function remove() {
  if (!confirm(`Delete the conversation "${open.title || "Untitled"}"?`)) return;
  store.remove(open);
  change(store.conversations()[0] ?? store.newConversation(open));
}
