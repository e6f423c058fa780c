// The messages of a conversation, as the page shows them.

import { button, copyButton, element, remark } from "./dom.js";
import { MarkdownView } from "./markdown.js";

// A list item for a message, with `update` to show it as it is now.
// actions   buttons beside it: a function for each name; "Copy" is there for every answer
export function messageItem(message, actions) {
  const mine = message.role === "user";
  const content = element("div");
  content.className = "content";
  const head = element("h3");
  head.className = "message-head";
  const foot = element("div");
  foot.className = "actions";
  const item = element("li", [head, content, foot]);
  item.className = message.role;
  const view = mine ? null : new MarkdownView(content);

  item.update = (busy) => {
    head.textContent = mine ? "You" : message.model || "Answer";
    if (mine) content.textContent = message.content;
    else view.show(message.content);
    content.setAttribute("aria-busy", String(busy));
    foot.replaceChildren(...(busy ? [] : footOf(message, actions)));
  };
  item.update(false);
  return item;
}

function footOf(message, actions) {
  const parts = Object.entries(actions).map(([name, act]) => button(name, act));
  if (message.role === "user") return parts;
  if (message.content) parts.unshift(copyButton("Copy the answer", message.content));
  if (message.figures) parts.push(remark("figures", message.figures));
  if (message.error) parts.unshift(remark("wrong", message.error));
  return parts;
}

// A list item with a form in place of a message; it calls `done` with the new text, or with null.
export function editItem(message, done) {
  const field = element("textarea");
  field.value = message.content;
  field.rows = Math.min(12, message.content.split("\n").length + 1);
  field.setAttribute("aria-label", "Your message");
  const send = element("button", ["Send again"]);
  const cancel = button("Cancel", () => done(null));
  const row = element("div", [send, cancel, remark("quiet", "What follows it is replaced.")]);
  row.className = "actions";
  const form = element("form", [field, row]);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) done(field.value.trim());
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    done(null);
  });
  return { editor: element("li", [form]), field };
}
