// What happens between a question and the end of its answer.

import { chat } from "./api.js";
import { keep } from "./conversations.js";
import { at } from "./dom.js";
import { Pace, figuresOf, speedOf } from "./figures.js";
import { parameters } from "./settings.js";
import * as transcript from "./transcript.js";

const SAVE_EVERY_MS = 1000;

let underWay = null; // of the answer: how to stop it, and what was asked for
let speed = "";

export const isAnswering = () => underWay !== null;

export function stop() {
  underWay?.controller.abort();
}

// The model and the place that answer now, or null.
export const asked = () => underWay?.choice ?? null;

// How fast the answer comes, or the last one came.
export const pace = () => speed;

// Asks for what follows the messages of a conversation. It ends well, whatever happens.
// chosen    gives the model and the place to ask, once they are known
// changed   called when there are new figures
export async function answer(conversation, chosen, changed) {
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  const item = transcript.add(conversation.messages.length - 1);
  underWay = { controller: new AbortController(), choice: null };
  item.update(true);
  transcript.showEnd(() => {});
  keep(conversation);
  announce("The model is answering.");
  try {
    underWay.choice = await chosen();
    message.model = underWay.choice.model;
    await receive(conversation, message, item, changed);
    announce(message.content);
  } catch (error) {
    message.error = error.name === "AbortError" ? "Stopped." : error.message;
    announce(message.error);
  }
  underWay = null;
  transcript.showEnd(() => item.update(false));
  keep(conversation);
}

async function receive(conversation, message, item, changed) {
  const { controller, choice } = underWay;
  const body = { ...choice, ...parameters(), messages: turns(conversation) };
  const clock = new Pace();
  let saved = performance.now();
  let drawn = false;
  for await (const chunk of chat(body, controller.signal)) {
    const text = chunk.choices[0]?.delta.content;
    if (text) {
      message.content += text;
      clock.take();
      speed = clock.words();
      changed();
      // A screen draws fewer times than a fast device gives tokens.
      if (!drawn) {
        drawn = true;
        requestAnimationFrame(() => {
          drawn = false;
          if (underWay) transcript.showEnd(() => item.update(true));
        });
      }
    }
    if (chunk.usage) {
      message.figures = figuresOf(chunk);
      speed = speedOf(chunk.timings);
      changed();
    }
    if (chunk.choices[0]?.finish_reason === "length") message.error = "The limit of tokens was reached.";
    if (performance.now() - saved > SAVE_EVERY_MS) {
      saved = performance.now();
      keep(conversation);
    }
  }
}

function turns({ system, messages }) {
  const said = messages.filter((one) => one.content).map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

function announce(text) {
  at("announcer").textContent = text;
}
