// The panels beside the conversation, which a narrow screen shows one at a time.

import { at } from "./dom.js";

export function closePanels() {
  for (const panel of document.querySelectorAll(".panel")) toggle(panel, false);
}

// Closes the panel that lies over the conversation, and gives the focus back; whether there was one.
export function leavePanel() {
  const open = document.querySelector(".panel.open");
  if (!open) return false;
  closePanels();
  openerOf(open).focus();
  return true;
}

function toggle(panel, open) {
  panel.classList.toggle("open", open);
  openerOf(panel).setAttribute("aria-expanded", String(open));
}

const openerOf = (panel) => document.querySelector(`[aria-controls="${panel.id}"]`);

for (const opener of document.querySelectorAll(".panel-button")) {
  opener.addEventListener("click", () => {
    const panel = at(opener.getAttribute("aria-controls"));
    const open = !panel.classList.contains("open");
    closePanels();
    toggle(panel, open);
  });
}
