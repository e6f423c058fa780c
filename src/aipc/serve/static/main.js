// The page: what its fields and buttons do.

import * as answers from "./answers.js";
import * as conversations from "./conversations.js";
import { percent, watchDevices } from "./devices.js";
import { at } from "./dom.js";
import { leavePanel } from "./panels.js";
import * as picker from "./picker.js";
import { keepSettings } from "./settings.js";
import * as transcript from "./transcript.js";

const question = at("question");

let loading = null; // of the list of models, which a question waits for

function show(conversation) {
  transcript.showAll(conversation);
  at("system").value = conversation.system;
  picker.choose(conversation);
  showFigures();
}

function ask(text) {
  const conversation = conversations.current();
  conversation.messages.push({ role: "user", content: text });
  conversation.title ||= text.slice(0, 60);
  transcript.add(conversation.messages.length - 1);
  answer();
}

function askAnew(index, text) {
  if (answers.isAnswering()) return;
  transcript.shorten(index);
  ask(text);
}

function retry() {
  if (answers.isAnswering()) return;
  transcript.shorten(conversations.current().messages.length - 1);
  answer();
}

async function answer() {
  const ended = answers.answer(conversations.current(), chosen, showFigures);
  setBusy(true);
  await ended;
  setBusy(false);
  showFigures();
  if (picker.choice().model) picker.refresh();
}

// What is asked for, which the conversation remembers.
async function chosen() {
  await loadModels();
  const choice = picker.choice();
  Object.assign(conversations.current(), { model: choice.model, place: picker.place() });
  return choice;
}

function loadModels() {
  loading ??= picker.load().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

function setBusy(busy) {
  // Whoever pressed one of the two must not lose the focus when it disappears.
  const focused = [at("send"), at("stop")].includes(document.activeElement);
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  if (focused || document.activeElement === document.body) question.focus();
  for (const one of document.querySelectorAll(".actions button, .panel > button, .panel .row button")) one.disabled = busy;
  conversations.lock(busy);
}

// The device that answers now, or would answer next, and the pace of the answer.
function showFigures() {
  const { device } = picker.answering(answers.asked() ?? picker.choice());
  const use = device ? `${device.kind} ${percent(device.utilisation)}` : "";
  at("figures").textContent = [use, answers.pace()].filter(Boolean).join(" · ");
}

function changeSettings() {
  const conversation = conversations.current();
  const { model } = picker.choice();
  Object.assign(conversation, { system: at("system").value, model, place: picker.place() });
  keepSettings(conversation);
  if (conversation.messages.length) conversations.keep(conversation);
  showFigures();
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || answers.isAnswering()) return;
  question.value = "";
  ask(text);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !leavePanel()) answers.stop();
});
at("stop").addEventListener("click", answers.stop);
at("settings-form").addEventListener("submit", (event) => event.preventDefault());
at("settings-form").addEventListener("change", changeSettings);
addEventListener("pagehide", () => answers.isAnswering() && conversations.keep(conversations.current()));

transcript.listen({ edited: askAnew, retried: retry });
const isEdited = () => transcript.isEdited() || document.activeElement === at("system");
conversations.listen({ shown: show, edited: isEdited });
watchDevices(at("devices"), (now) => {
  picker.follow(now);
  showFigures();
});
loadModels().catch(({ message }) => conversations.notice(message));
