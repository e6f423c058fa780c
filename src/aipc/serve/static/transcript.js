// The messages of the open conversation, one below the other.

import { at } from "./dom.js";
import { editItem, messageItem } from "./messages.js";

const FROM_THE_END = 50;

const list = at("messages");

let shown = { messages: [] };
let asked = { edited: () => {}, retried: () => {} };

// edited    called with the index of a question and its new text
// retried   called when the last answer is wanted anew
export function listen(actions) {
  asked = actions;
}

export function showAll(conversation) {
  shown = conversation;
  list.replaceChildren();
  shown.messages.forEach((_, index) => add(index));
  list.scrollTop = list.scrollHeight;
}

// Shows a message that has come to the conversation; gives its list item.
export function add(index) {
  const message = shown.messages[index];
  const last = index === shown.messages.length - 1;
  const actions = {};
  if (message.role === "user") actions.Edit = () => edit(index);
  else if (last) actions.Retry = asked.retried;
  // Only the last answer can be asked for anew.
  for (const one of list.querySelectorAll(".assistant .actions button")) {
    if (one.textContent === "Retry") one.remove();
  }
  const item = messageItem(message, actions);
  list.append(item);
  return item;
}

// Takes away all but the first messages.
export function shorten(count) {
  shown.messages.length = count;
  while (list.children.length > count) list.lastChild.remove();
}

export const isEdited = () => list.querySelector("form") !== null;

// Follows the answer, unless the reader has scrolled away from its end.
export function showEnd(update) {
  const follow = list.scrollHeight - list.scrollTop - list.clientHeight < FROM_THE_END;
  update();
  if (follow) list.scrollTop = list.scrollHeight;
}

function edit(index) {
  const item = list.children[index];
  const { editor, field } = editItem(shown.messages[index], (text) => {
    editor.replaceWith(item);
    if (text === null) item.querySelector("button").focus();
    else asked.edited(index, text);
  });
  item.replaceWith(editor);
  field.focus();
}
