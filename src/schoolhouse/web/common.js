// Shared by both pages. Text enters a page only as text: no script here parses a string as HTML.

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

// fetch with the server's API key, where it has one: the key is typed once per session.
export async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  if (sessionStorage.getItem("key") !== key) return request(path, options); // typed for another request in the meantime
  const typed = prompt(key ? "This API key is wrong. API key of this server:" : "API key of this server:");
  if (!typed) return response;
  sessionStorage.setItem("key", typed);
  return request(path, options);
}

// The JSON of a response; an Error with the server's message for any other status than 2xx.
export async function readJson(response) {
  if (response.status === 401) throw new Error("The API key is missing or wrong; reload the page, and type the key.");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error?.message ?? body.detail ?? `${response.status} ${response.statusText}`);
  return body;
}

// A query string; a list gives its key several times, empty values are left out.
export function queryString(query) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const item of Array.isArray(value) ? value : [value]) if (item !== "" && item != null) params.append(name, item);
  }
  return params.toString();
}

export const getJson = async (path, query = {}) => readJson(await request(`${path}?${queryString(query)}`));

export const postQuery = async (path, query) => readJson(await request(`${path}?${queryString(query)}`, { method: "POST" }));

// An image of the server. An <img> cannot send the API key, so with a key the image is fetched and becomes a data URL.
export function image(path, alt) {
  if (!sessionStorage.getItem("key")) return h("img", { src: path, alt, loading: "lazy" });
  const element = h("img", { alt });
  request(path).then(async (response) => {
    const reader = new FileReader();
    reader.onload = () => { element.src = reader.result; };
    if (response.ok) reader.readAsDataURL(await response.blob());
  });
  return element;
}

export const formatNumber = (value, digits = 3) =>
  value == null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toFixed(digits));

export function formatDuration(seconds) {
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

// A search tree from its nodes in order of creation; a node with children unfolds.
export function searchTree(nodes) {
  const lists = new Map([[null, h("ul", { class: "tree" })]]);
  const parents = new Set(nodes.map((node) => node.parent));
  nodes.forEach((node, index) => {
    const discarded = ["dropped", "pruned", "duplicate"].includes(node.status);
    const status = ["expanded", "open"].includes(node.status) ? "" : node.status;
    const note = [node.value == null ? "" : `value ${formatNumber(node.value)}`, status].filter(Boolean).join(" ");
    const line = h("span", { class: node.chosen ? "chosen" : discarded ? "soft" : "" }, node.text.trim(), " ", h("span", { class: "soft" }, note));
    const children = h("ul");
    lists.set(index, children);
    lists.get(node.parent).append(h("li", {}, parents.has(index) ? h("details", { open: node.chosen }, h("summary", {}, line), children) : line));
  });
  return lists.get(null);
}
