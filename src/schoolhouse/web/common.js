// What both pages are made with. Text only ever enters the page as text.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

// A server may ask for a key: it is typed once a session.
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  if (answer.status !== 401) return answer;
  const typed = prompt("This server asks for its key:");
  if (!typed) return answer;
  sessionStorage.setItem("key", typed);
  return ask(path, options);
}

export async function get(path, query = {}) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one != null) words.append(name, one);
  }
  const answer = await ask(`${path}?${words}`);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error?.message ?? body.detail ?? answer.statusText);
  return body;
}

export const number = (value, digits = 3) =>
  value == null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toFixed(digits));

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const field = (label, control) => h("label", {}, label, control);

export function select(options, value, onchange) {
  return h("select", { onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
}

// A search's thoughts, which are told in the order in which they were had: each folds what came of it.
export function tree(nodes) {
  const lists = new Map([[null, h("ul", { class: "tree" })]]);
  const parents = new Set(nodes.map((node) => node.parent));
  nodes.forEach((node, at) => {
    const kind = node.taken ? "taken" : ["dropped", "pruned", "repeat"].includes(node.fate) ? "soft" : "";
    const fate = ["expanded", "open"].includes(node.fate) ? "" : node.fate;
    const line = h("span", { class: kind }, node.text.trim(), " ", h("span", { class: "soft" }, [node.value == null ? "" : number(node.value), fate].filter(Boolean).join(" ")));
    const inside = h("ul");
    lists.set(at, inside);
    lists.get(node.parent).append(h("li", {}, parents.has(at) ? h("details", { open: node.taken }, h("summary", {}, line), inside) : line));
  });
  return lists.get(null);
}
