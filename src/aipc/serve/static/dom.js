// What the page's other files make of the document: elements, buttons, and a text on the clipboard.

export const at = (id) => document.getElementById(id);

// An element with children; a string becomes a text node.
export function element(name, children = []) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

// A paragraph of a class.
export function remark(kind, text) {
  const made = element("p", [text]);
  made.className = kind;
  return made;
}

export function button(name, act) {
  const made = element("button", [name]);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// A button that puts a text on the clipboard, and says so.
export function copyButton(label, text) {
  const made = button("Copy", async () => {
    made.textContent = (await copied(text, made)) ? "Copied" : "Not copied";
    setTimeout(() => (made.textContent = "Copy"), 2000);
  });
  made.setAttribute("aria-label", label);
  return made;
}

async function copied(text, focused) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Beyond localhost and without TLS there is no navigator.clipboard.
    return copiedBySelection(text, focused);
  }
}

function copiedBySelection(text, focused) {
  const field = element("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused.focus();
  return done;
}
