// Which model is asked, and on which device: what there is, what is chosen, and what answers then.

import { getJson } from "./api.js";
import { at, element } from "./dom.js";

const models = at("model");
const places = at("place");

let details = null; // of the chosen model: its places, and which of them is taken where none is chosen
let problem = ""; // why there are none
let wanted = { model: "", place: null };
let activity = { devices: [], models: [] };

// What the next question asks for; `device` and `runtime` only where a place was chosen.
export function choice() {
  return { model: models.value, ...place() };
}

// The chosen place: device and runtime, or null where the server chooses.
export function place() {
  if (!places.value) return null;
  const [device, runtime] = places.value.split(" ");
  return { device, runtime };
}

// Chooses what a conversation asks, now or when the models are known.
export function choose({ model, place }) {
  wanted = { model, place };
  if (models.length) showChosen();
}

export async function load() {
  const { data } = await getJson("/v1/models");
  models.replaceChildren(...data.map(({ id }) => new Option(id, id)));
  showChosen();
}

// Learns anew where the chosen model may run: an answer may have taken another place than was thought.
export async function refresh() {
  const model = models.value;
  let found = null;
  let failure = "";
  try {
    found = await getJson(`/v1/models/${encodeURIComponent(model)}`);
  } catch ({ message }) {
    failure = message;
  }
  if (model !== models.value) return;
  [details, problem] = [found, failure];
  showPlaces();
}

// The worker that a question goes to, and its device, as far as both are known.
export function answering(asked) {
  const worker = activity.models.find(
    (one) =>
      one.id === asked.model &&
      (asked.device ? one.device === asked.device && one.runtime === asked.runtime : one.auto),
  );
  return { worker, device: worker && activity.devices.find((one) => one.id === worker.device_id) };
}

export function follow(now) {
  activity = now;
  showState();
}

models.addEventListener("change", () => {
  wanted = { model: models.value, place: place() };
  showChosen();
});
places.addEventListener("change", () => {
  wanted.place = place();
  showState();
});

function showChosen() {
  if ([...models.options].some((one) => one.value === wanted.model)) models.value = wanted.model;
  else wanted = { model: models.value, place: null };
  const known = details?.id === models.value;
  if (!known) details = null;
  showPlaces();
  if (!known) refresh();
}

function showPlaces() {
  const listed = details?.places ?? [];
  const auto = details?.auto;
  const options = [new Option(auto ? `auto: ${titleOf(auto)}` : "auto", "")];
  options.push(...listed.map((one) => new Option(`${titleOf(one)} · ${one.device_name}`, valueOf(one))));
  const value = wanted.place ? valueOf(wanted.place) : "";
  if (!options.some((one) => one.value === value)) {
    const { device, runtime } = wanted.place;
    options.push(new Option(`${device} · ${runtime}${details ? " · not here" : ""}`, value));
  }
  places.replaceChildren(...options);
  places.value = value;
  showState();
}

function showState() {
  const asked = choice();
  const { worker } = answering(asked);
  const state = worker
    ? `Answers on ${worker.device} with ${worker.runtime_name}, ${worker.precision}.`
    : "Loaded when it is asked.";
  at("answers-on").textContent = problem || state;
  const chosen = asked.device ? details?.places.find((one) => valueOf(one) === places.value) : details?.auto;
  const warning = chosen?.warning ?? "";
  at("warning").textContent = warning;
  at("warning").hidden = !warning;
  const said = new Set([...(asked.device ? [] : (details?.notes ?? [])), ...(worker?.notes ?? [])]);
  said.delete(warning);
  at("why").hidden = said.size === 0;
  at("notes").replaceChildren(...[...said].map((text) => element("li", [text])));
}

const titleOf = ({ device, runtime_name: runtime }) => `${device} · ${runtime}`;
const valueOf = ({ device, runtime }) => `${device} ${runtime}`;
