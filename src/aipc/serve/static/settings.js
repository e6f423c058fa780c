// The parameters of the answers, the same for all conversations; an empty field leaves a value to the server.

import { notice } from "./conversations.js";
import { at } from "./dom.js";
import * as store from "./store.js";

const PARAMETERS = ["temperature", "top_p", "max_tokens", "seed"];

for (const name of PARAMETERS) at(name).value = store.settings()[name] ?? "";

// What the fields say, as far as it can be.
export function parameters() {
  const fields = PARAMETERS.map((name) => [name, at(name)]);
  const said = fields.filter(([, field]) => field.value !== "" && field.validity.valid);
  return Object.fromEntries(said.map(([name, field]) => [name, field.valueAsNumber]));
}

// Keeps the fields, and what a new conversation begins with.
export function keepSettings({ model, place }) {
  const fields = PARAMETERS.map((name) => [name, at(name).value]);
  try {
    store.saveSettings({ ...Object.fromEntries(fields), model, place });
  } catch {
    notice("The browser has no room for these settings. Delete conversations.");
  }
}
