// The page: which conversation is open, what is asked, and what the buttons do.

import { chat, getJson } from "./api.js";
import { percent, runsOn, watchDevices } from "./devices.js";
import { element } from "./markdown.js";
import { button, editItem, messageItem } from "./messages.js";
import * as store from "./store.js";

const PARAMETERS = ["temperature", "top_p", "max_tokens", "seed"];
const SAVE_EVERY_MS = 1000;

const at = (id) => document.getElementById(id);
const list = at("messages");
const question = at("question");
const form = at("settings-form");

let conversation = store.conversations()[0] ?? store.newConversation();
let answering = null; // the AbortController of the answer under way
let activity = { devices: [], models: [] };
let speed = "";

// Messages

function showConversation() {
  list.replaceChildren();
  conversation.messages.forEach((_, index) => showMessage(index));
  at("system").value = conversation.system;
  showList();
  list.scrollTop = list.scrollHeight;
}

function showMessage(index) {
  const message = conversation.messages[index];
  const actions = {};
  if (message.role === "user") actions.Edit = () => edit(index);
  else if (index === conversation.messages.length - 1) actions.Retry = retry;
  const item = messageItem(message, actions);
  list.append(item);
  return item;
}

function keepUntil(count) {
  conversation.messages.length = count;
  while (list.children.length > count) list.lastChild.remove();
}

function edit(index) {
  if (answering) return;
  const item = list.children[index];
  const { editor, field } = editItem(conversation.messages[index], (text) => {
    editor.replaceWith(item);
    if (text === null) {
      item.querySelector("button").focus();
      return;
    }
    keepUntil(index);
    ask(text);
  });
  item.replaceWith(editor);
  field.focus();
}

function retry() {
  if (answering) return;
  keepUntil(conversation.messages.length - 1);
  answer();
}

function ask(text) {
  const before = list.lastChild;
  conversation.messages.push({ role: "user", content: text });
  conversation.title ||= text.slice(0, 60);
  showMessage(conversation.messages.length - 1);
  // Only the last answer can be asked for anew.
  if (before?.className === "assistant") withoutRetry(before);
  answer();
}

function withoutRetry(item) {
  for (const one of item.querySelectorAll(".actions button")) if (one.textContent === "Retry") one.remove();
}

// Answers

async function answer() {
  const mine = conversation;
  const message = { role: "assistant", content: "" };
  mine.messages.push(message);
  const item = showMessage(mine.messages.length - 1);
  answering = new AbortController();
  item.update(true);
  list.scrollTop = list.scrollHeight;
  setBusy(true);
  announce("The model is answering.");
  try {
    if (!at("model").value) await loadModels();
    const body = requestBody(mine);
    message.model = body.model;
    await receive(chat(body, answering.signal), message, item, mine);
    announce(message.content);
  } catch (error) {
    message.error = error.name === "AbortError" ? "Stopped." : error.message;
    announce(message.error);
  }
  answering = null;
  setBusy(false);
  showEnd(() => item.update(false));
  keep(mine);
}

async function receive(chunks, message, item, mine) {
  const meter = { began: performance.now(), first: 0, count: 0 };
  let saved = meter.began;
  let drawn = false;
  for await (const chunk of chunks) {
    const text = chunk.choices[0]?.delta.content;
    if (text) {
      message.content += text;
      measure(meter);
      // A screen draws fewer times than a fast device gives tokens.
      if (!drawn) {
        drawn = true;
        requestAnimationFrame(() => {
          drawn = false;
          if (answering) showEnd(() => item.update(true));
        });
      }
    }
    if (chunk.usage) {
      message.figures = figuresOf(chunk);
      speed = speedOf(chunk.timings);
    }
    if (chunk.choices[0]?.finish_reason === "length") message.error = "The limit of tokens was reached.";
    if (performance.now() - saved > SAVE_EVERY_MS) {
      saved = performance.now();
      keep(mine);
    }
  }
  showFigures();
}

function requestBody({ system, messages }) {
  const turns = messages.filter((one) => one.content).map(({ role, content }) => ({ role, content }));
  if (system.trim()) turns.unshift({ role: "system", content: system });
  const body = { model: at("model").value, messages: turns };
  for (const name of PARAMETERS) {
    const field = at(name);
    if (field.value !== "" && field.validity.valid) body[name] = field.valueAsNumber;
  }
  return body;
}

// While the answer comes, the page's own clock; afterwards the server's figures take their place.
function measure(meter) {
  const now = performance.now();
  meter.first ||= now;
  meter.count += 1;
  speed = `first token ${seconds((meter.first - meter.began) / 1000)}`;
  if (now > meter.first) speed += ` · about ${rate((1000 * (meter.count - 1)) / (now - meter.first))}`;
  showFigures();
}

function figuresOf({ usage, timings }) {
  const { device, runtime, precision } = timings;
  return [device, runtime, precision, speedOf(timings), `${usage.completion_tokens} tokens`].filter(Boolean).join(" · ");
}

function speedOf({ ttft_s, tokens_per_s }) {
  const known = [];
  if (ttft_s !== null) known.push(`first token ${seconds(ttft_s)}`);
  if (tokens_per_s !== null) known.push(rate(tokens_per_s));
  return known.join(" · ");
}

const seconds = (value) => (value < 0.1 ? `${Math.ceil(1000 * value)} ms` : `${value.toFixed(2)} s`);
const rate = (value) => `${value.toFixed(1)} tokens/s`;

function showFigures() {
  const model = activity.models.find((one) => one.id === at("model").value);
  const device = model && activity.devices.find((one) => runsOn(model, one));
  const use = device ? `${device.kind} ${percent(device.utilisation)}` : "";
  at("figures").textContent = [use, speed].filter(Boolean).join(" · ");
  at("answers-on").textContent = model
    ? `Answers on ${model.device} with ${model.runtime}, ${model.precision}.`
    : "Loaded when it is asked.";
}

function setBusy(busy) {
  // Whoever pressed one of the two must not lose the focus when it disappears.
  const focused = [at("send"), at("stop")].includes(document.activeElement);
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  if (focused || document.activeElement === document.body) question.focus();
  for (const one of document.querySelectorAll(".actions button, .panel button")) one.disabled = busy;
}

function announce(text) {
  at("announcer").textContent = text;
}

// Follows the answer, unless the reader has scrolled away from its end.
function showEnd(update) {
  const follow = list.scrollHeight - list.scrollTop - list.clientHeight < 50;
  update();
  if (follow) list.scrollTop = list.scrollHeight;
}

// Conversations

function keep(one) {
  one.changed = Date.now();
  try {
    store.save(one);
  } catch {
    notice("The browser has no room for this conversation. Export it, or delete others.");
  }
  showList();
}

function showList() {
  const kept = store.conversations();
  const items = kept.map((one) => {
    const open = button(one.title || "Untitled", () => {
      conversation = one;
      showConversation();
      closePanels();
      question.focus();
    });
    if (one.id === conversation.id) open.setAttribute("aria-current", "true");
    open.disabled = answering !== null;
    return element("li", [open]);
  });
  at("conversation-list").replaceChildren(...items);
}

function startNew() {
  conversation = store.newConversation(conversation.system);
  showConversation();
  closePanels();
  question.focus();
}

function exportConversation() {
  const blob = new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" });
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = `aipc-${new Date(conversation.changed).toISOString().slice(0, 10)}-${conversation.id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function deleteConversation() {
  if (!confirm(`Delete the conversation "${conversation.title || "Untitled"}"?`)) return;
  store.remove(conversation);
  conversation = store.conversations()[0] ?? store.newConversation();
  showConversation();
}

// Settings

async function loadModels() {
  const { data } = await getJson("/v1/models");
  const names = data.map((model) => model.id);
  at("model").replaceChildren(...names.map((name) => new Option(name, name)));
  const wanted = store.settings().model;
  if (names.includes(wanted)) at("model").value = wanted;
  showFigures();
}

function keepSettings() {
  const fields = ["model", ...PARAMETERS];
  store.saveSettings(Object.fromEntries(fields.map((name) => [name, at(name).value])));
  conversation.system = at("system").value;
  if (conversation.messages.length) keep(conversation);
  showFigures();
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function closePanels() {
  for (const panel of document.querySelectorAll(".panel")) togglePanel(panel, false);
}

function togglePanel(panel, open) {
  panel.classList.toggle("open", open);
  document.querySelector(`[aria-controls="${panel.id}"]`).setAttribute("aria-expanded", String(open));
}

// Events

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || answering) return;
  question.value = "";
  ask(text);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector(".panel.open");
  if (open) {
    closePanels();
    document.querySelector(`[aria-controls="${open.id}"]`).focus();
  } else answering?.abort();
});
for (const opener of document.querySelectorAll(".panel-button")) {
  opener.addEventListener("click", () => {
    const panel = at(opener.getAttribute("aria-controls"));
    const open = !panel.classList.contains("open");
    closePanels();
    togglePanel(panel, open);
  });
}
at("stop").addEventListener("click", () => answering?.abort());
at("new").addEventListener("click", startNew);
at("export").addEventListener("click", exportConversation);
at("delete").addEventListener("click", deleteConversation);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", keepSettings);
addEventListener("storage", () => !answering && showList());
addEventListener("pagehide", () => answering && keep(conversation));

for (const name of PARAMETERS) at(name).value = store.settings()[name] ?? "";
showConversation();
watchDevices(at("devices"), (now) => {
  activity = now;
  showFigures();
});
loadModels().catch((error) => notice(error.message));
