// Markdown and formulas as DOM nodes. HTML tags in the text are shown as text: no string is ever parsed as HTML.

import { h } from "./common.js";

const FORMULA = /\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$([^\s$](?:[^$\n]*[^\s$])?)\$|(\\boxed\{(?:[^{}]|\{[^{}]*\})*\})/g;
const PLACEHOLDER = /(\ue000\d+\ue001)/; // a formula's, while the text around it is parsed as Markdown
const KATEX = { throwOnError: true, trust: false, strict: "ignore", maxExpand: 200, maxSize: 20 };
const ENTITY = /&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,5}));/g;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const LINK = /^(?:https?:\/\/|mailto:)/i;
const TAGS = { paragraph: "p", blockquote: "blockquote", strong: "strong", em: "em", del: "del" };
const MAX_DEPTH = 12; // of nested lists and quotes; what is deeper is shown as it was written

export function renderMarkdown(source) {
  const formulas = [];
  const text = source.replace(/[\ue000\ue001]/g, "\ufffd").replace(FORMULA, (written, dollars, brackets, parentheses, dollar, boxed) => {
    formulas.push({ written, tex: dollars ?? brackets ?? parentheses ?? dollar ?? boxed, displayMode: (dollars ?? brackets) != null });
    return `\ue000${formulas.length - 1}\ue001`;
  });
  let nodes;
  try {
    nodes = renderTokens(marked.lexer(text, { ...marked.defaults, breaks: true }), formulas, 0);
  } catch { // nested deeper than the parser can go
    nodes = source;
  }
  return h("div", { class: "answer" }, nodes);
}

const renderTokens = (tokens, formulas, depth) => tokens.map((token) => renderToken(token, formulas, depth + 1));

function renderToken(token, formulas, depth) {
  const written = () => withoutPlaceholders(token.raw, formulas);
  const children = () => (token.tokens ? renderTokens(token.tokens, formulas, depth) : renderText(token.text, formulas));
  if (depth > MAX_DEPTH) return written();
  switch (token.type) {
    case "space": case "def": return null;
    case "hr": case "br": return h(token.type);
    case "heading": return h(`h${Math.min(6, token.depth + 2)}`, {}, children());
    case "paragraph": case "blockquote": case "strong": case "em": case "del": return h(TAGS[token.type], {}, children());
    case "text": case "escape": return children();
    case "code": return h("pre", {}, h("code", {}, withoutPlaceholders(token.text, formulas)));
    case "codespan": return h("code", {}, withoutPlaceholders(token.text, formulas));
    case "checkbox": return token.checked ? "☑ " : "☐ ";
    case "list": return h(token.ordered ? "ol" : "ul", { start: token.ordered ? token.start : null },
      token.items.map((item) => h("li", {}, renderTokens(item.tokens, formulas, depth))));
    case "table": {
      const row = (tag, cells) => h("tr", {}, cells.map((cell) => h(tag, { class: cell.align === "right" ? "num" : null }, renderTokens(cell.tokens, formulas, depth))));
      return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, row("th", token.header)), h("tbody", {}, token.rows.map((cells) => row("td", cells)))));
    }
    case "link": case "image": // an image is a link: nothing is loaded from elsewhere
      return LINK.test(token.href) ? h("a", { href: token.href, rel: "noopener noreferrer", target: "_blank" }, children()) : written();
    case "html": return token.block ? h("p", { class: "written" }, written().trimEnd()) : written();
    default: return written();
  }
}

const withoutPlaceholders = (text, formulas) => text.replace(/\ue000(\d+)\ue001/g, (_, index) => formulas[index].written);

function renderText(text, formulas) {
  return text.split(PLACEHOLDER).map((piece) => {
    const index = /^\ue000(\d+)\ue001$/.exec(piece)?.[1];
    if (index == null) return piece.replace(ENTITY, (_, name, code) => (name ? ENTITIES[name] : String.fromCodePoint(code)));
    const { written, tex, displayMode } = formulas[index];
    const span = h("span");
    try { katex.render(tex, span, { ...KATEX, displayMode }); } catch { span.textContent = written; }
    return span;
  });
}
