// Markdown as DOM nodes. Text becomes text nodes only, so nothing in an answer can run.

import { copyButton, element } from "./dom.js";

const DEEPEST = 8;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
// Models indent what is below an item by two spaces or more, whatever its mark takes.
const ITEM = /^( ?)([-*+]|\d{1,9}[.)])( {1,4}|\t|$)/;
const TABLE_LINE = /^ {0,3}\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?\|? *$/;

// Keeps an element showing a text that grows: only the blocks that changed are made anew.
export class MarkdownView {
  #element;
  #shown = [];

  constructor(element) {
    this.#element = element;
  }

  show(text) {
    const blocks = split(text);
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.#shown[same]) same += 1;
    while (this.#element.childNodes.length > same) this.#element.lastChild.remove();
    this.#element.append(...blocks.slice(same).map((block) => block.build(DEEPEST)));
    this.#shown = blocks.map((block) => block.source);
  }
}

function render(text, depth) {
  return depth > 0 ? split(text).map((block) => block.build(depth - 1)) : [text];
}

// The blocks of a text: what each was made of, and how to make it.
function split(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const kind = KINDS.find((one) => one.begins(lines, at));
    const end = kind.end(lines, at);
    const own = lines.slice(at, end);
    blocks.push({ source: kind.name + own.join("\n"), build: (depth) => kind.build(own, depth) });
    at = end;
  }
  return blocks;
}

const endWhere = (ends) => (lines, at) => {
  let end = at + 1;
  while (end < lines.length && !ends(lines, end, at)) end += 1;
  return end;
};

const isTable = (lines, at) =>
  lines[at].includes("|") && at + 1 < lines.length && TABLE_LINE.test(lines[at + 1]);

const KINDS = [
  {
    name: "code",
    begins: (lines, at) => FENCE.test(lines[at]),
    end(lines, at) {
      const mark = FENCE.exec(lines[at])[1];
      const close = lines.findIndex((line, index) => index > at && closes(line, mark));
      return close < 0 ? lines.length : close + 1;
    },
    build(lines) {
      const [, mark, language] = FENCE.exec(lines[0]);
      const last = lines.length > 1 && closes(lines.at(-1), mark) ? -1 : undefined;
      return codeBlock(lines.slice(1, last).join("\n"), language);
    },
  },
  {
    name: "heading",
    begins: (lines, at) => HEADING.test(lines[at]),
    end: (_, at) => at + 1,
    build([line]) {
      const [, marks, text] = HEADING.exec(line);
      // The page's own headings are above those of an answer.
      return element(`h${Math.min(marks.length + 3, 6)}`, inline(text));
    },
  },
  {
    name: "rule",
    begins: (lines, at) => RULE.test(lines[at]),
    end: (_, at) => at + 1,
    build: () => element("hr"),
  },
  {
    name: "quote",
    begins: (lines, at) => QUOTE.test(lines[at]),
    end: endWhere((lines, at) => !QUOTE.test(lines[at])),
    build: (lines, depth) =>
      element("blockquote", render(lines.map((line) => line.replace(QUOTE, "")).join("\n"), depth)),
  },
  {
    name: "list",
    begins: (lines, at) => ITEM.test(lines[at]),
    end: endWhere((lines, at, first) => endsList(lines, at, first)),
    build: list,
  },
  {
    name: "table",
    begins: isTable,
    end: endWhere((lines, at) => !lines[at].includes("|")),
    build: table,
  },
  {
    name: "paragraph",
    begins: () => true,
    end: endWhere((lines, at) => !lines[at].trim() || KINDS.slice(0, -1).some((kind) => kind.begins(lines, at))),
    build: (lines) => element("p", inline(lines.map((line) => line.trim()).join("\n"))),
  },
];

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

const isOrdered = (line) => /\d/.test(ITEM.exec(line)[2]);

function endsList(lines, at, first) {
  const line = lines[at];
  if (!line.trim()) {
    const next = lines[at + 1] ?? "";
    return !/^\s{2}/.test(next) && !ITEM.test(next);
  }
  if (ITEM.test(line)) return RULE.test(line) || isOrdered(line) !== isOrdered(lines[first]);
  if (/^\s{2}/.test(line)) return false;
  return !lines[at - 1].trim() || FENCE.test(line) || HEADING.test(line);
}

function list(lines, depth) {
  const items = [];
  let indent = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item) {
      indent = item[0].length;
      items.push([line.slice(indent)]);
    } else {
      items.at(-1).push(line.replace(new RegExp(`^\\s{0,${indent}}`), ""));
    }
  }
  const made = element(isOrdered(lines[0]) ? "ol" : "ul", items.map((item) => listItem(item, depth)));
  const start = Number.parseInt(ITEM.exec(lines[0])[2], 10);
  if (start !== 1 && isOrdered(lines[0])) made.start = start;
  return made;
}

function listItem(lines, depth) {
  const nodes = render(lines.join("\n"), depth);
  const [first] = nodes;
  // The text of an item stands beside its mark.
  if (first instanceof HTMLParagraphElement) nodes.splice(0, 1, ...first.childNodes);
  return element("li", nodes);
}

function table([head, , ...rows]) {
  const row = (line, cell) => element("tr", cells(line).map((text) => element(cell, inline(text))));
  return element("table", [
    element("thead", [row(head, "th")]),
    element("tbody", rows.map((line) => row(line, "td"))),
  ]);
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((text) => text.trim());
}

function codeBlock(text, language) {
  const copy = copyButton("Copy the code", text);
  const body = element("pre", [element("code", [text])]);
  body.tabIndex = 0;
  const made = element("figure", [element("figcaption", [element("span", [language || "code"]), copy]), body]);
  made.className = "code";
  return made;
}

const SPAN = /\\[!-/:-@[-`{-~]|(`+)|!?\[|(\*\*|__|~~|\*|_)|https?:\/\/[^\s<>"'`]+|\n/g;
const LINK_END = /^\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/;
const TAGS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

// The nodes of a line of text. Marks that nothing closes are searched for once only.
function inline(text, depth = DEEPEST) {
  const nodes = [];
  const unclosed = new Set();
  let done = 0;
  const find = new RegExp(SPAN);
  for (let match = find.exec(text); match; match = find.exec(text)) {
    const made = span(text, match, unclosed, depth);
    if (!made) continue;
    nodes.push(text.slice(done, match.index), made.node);
    done = find.lastIndex = made.end;
  }
  nodes.push(text.slice(done));
  return nodes;
}

function span(text, match, unclosed, depth) {
  const [mark, ticks, emphasis] = match;
  const from = match.index + mark.length;
  if (mark === "\n") return { node: element("br"), end: from };
  if (mark[0] === "\\") return { node: mark[1], end: from };
  if (ticks) return codeSpan(text, ticks, from, unclosed);
  if (mark.endsWith("[")) return linkSpan(text, from, unclosed, depth);
  if (emphasis) return emphasisSpan(text, emphasis, match.index, unclosed, depth);
  const address = mark.replace(/[.,;:!?)*_~\]]+$/, "");
  const url = webAddress(address);
  return url && { node: link(url, [address]), end: match.index + address.length };
}

function closing(text, mark, from, unclosed) {
  if (unclosed.has(mark)) return -1;
  const at = text.indexOf(mark, from);
  if (at < 0) unclosed.add(mark);
  return at;
}

function codeSpan(text, ticks, from, unclosed) {
  const end = closing(text, ticks, from, unclosed);
  if (end < 0) return null;
  const code = text.slice(from, end).replaceAll("\n", " ");
  return { node: element("code", [/^ .*\S.* $/.test(code) ? code.slice(1, -1) : code]), end: end + ticks.length };
}

function linkSpan(text, from, unclosed, depth) {
  const end = closing(text, "](", from, unclosed);
  const match = depth === 0 || end < 0 ? null : LINK_END.exec(text.slice(end, end + 2000));
  const url = match && webAddress(match[1]);
  return url && { node: link(url, inline(text.slice(from, end), depth - 1)), end: end + match[0].length };
}

function emphasisSpan(text, mark, at, unclosed, depth) {
  const from = at + mark.length;
  const inWord = mark[0] === "_" && /\w/.test(text[at - 1] ?? "");
  if (depth === 0 || inWord || /\s/.test(text[from] ?? " ")) return null;
  const end = closing(text, mark, from + 1, unclosed);
  if (end < 0 || /\s/.test(text[end - 1])) return null;
  if (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "")) return null;
  return { node: element(TAGS[mark], inline(text.slice(from, end), depth - 1)), end: end + mark.length };
}

// The address if a link may lead there, and no script: those have other protocols.
function webAddress(address) {
  if (!URL.canParse(address)) return null;
  const url = new URL(address);
  return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
}

function link(url, nodes) {
  const made = element("a", nodes);
  made.href = url;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}
