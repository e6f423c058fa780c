// What the devices are doing: asked once a second while the page is seen.

import { getJson } from "./api.js";
import { element } from "./dom.js";

const EVERY_MS = 1000;
const LONGEST = 60;
const SVG = "http://www.w3.org/2000/svg";

const histories = new Map();

// Calls `changed` with each new activity.
export function watchDevices(list, changed) {
  const rows = new Map();
  const ask = async () => {
    if (!document.hidden) {
      try {
        const activity = await getJson("/monitor", { quiet: true });
        show(list, rows, activity);
        changed(activity);
      } catch (error) {
        rows.clear();
        list.replaceChildren(element("li", [error.message]));
      }
    }
    setTimeout(ask, EVERY_MS);
  };
  ask();
}

// A share as people read it.
export function percent(share) {
  return share === null ? "not readable" : `${Math.round(100 * share)} %`;
}

function show(list, rows, activity) {
  if (rows.size !== activity.devices.length) {
    rows.clear();
    list.replaceChildren();
  }
  if (activity.failure) list.replaceChildren(element("li", [activity.failure]));
  for (const device of activity.devices) {
    if (!rows.has(device.id)) {
      rows.set(device.id, deviceRow(device));
      list.append(rows.get(device.id).item);
    }
    rows.get(device.id).update(device, activity);
  }
}

function deviceRow(device) {
  const name = element("span", [device.kind]);
  const share = element("span");
  const head = element("div", [name, share]);
  head.className = "name";
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("viewBox", `0 0 ${LONGEST - 1} 100`);
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  chart.append(line);
  const more = element("div");
  more.className = "quiet";
  const item = element("li", [head, chart, more]);

  return {
    item,
    update(now, activity) {
      share.textContent = percent(now.utilisation);
      head.classList.toggle("answers", activity.models.some((model) => model.device_id === now.id));
      line.setAttribute("points", points(remembered(now)));
      more.textContent = [now.name, memory(now), now.power_w === null ? "" : `${now.power_w.toFixed(1)} W`, now.not_readable]
        .filter(Boolean)
        .join(" · ");
    },
  };
}

function remembered(device) {
  const shares = histories.get(device.id) ?? [];
  shares.push(device.utilisation);
  if (shares.length > LONGEST) shares.shift();
  histories.set(device.id, shares);
  return shares;
}

function points(shares) {
  const left = LONGEST - shares.length;
  return shares
    .map((share, at) => (share === null ? "" : `${left + at},${100 - 100 * Math.min(share, 1)}`))
    .filter(Boolean)
    .join(" ");
}

function memory({ memory_used_bytes: used, memory_total_bytes: total }) {
  if (used === null) return "";
  const gb = (bytes) => (bytes / 1e9).toFixed(1);
  return total === null ? `${gb(used)} GB` : `${gb(used)} of ${gb(total)} GB`;
}
