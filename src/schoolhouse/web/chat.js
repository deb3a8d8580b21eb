// The page that talks. What a model says is text until it has been cleaned: markup in it never runs.

import { ask, field, get, h, number, select, tree } from "./common.js";

const main = document.getElementById("main");
const text = document.getElementById("text");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const MODES = { chat: "chat", text: "text that goes on", duel: "two models, blind" };
const state = { mode: "chat", models: [], model: "", temperature: 0.7, budget: 0, samples: 1, search: "", length: 0, probabilities: false, examples: "", line: false, turns: [] };
let leaving = null;

// --- what was said, shown

const MATH = /\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$([^\s$](?:[^$\n]*[^\s$])?)\$|(\\boxed\{(?:[^{}]|\{[^{}]*\})*\})/g;

export function rendered(said) {
  const formulas = [];
  const marked_ = said.replace(MATH, (whole, block, block2, line, dollars, boxed) => {
    formulas.push({ tex: block ?? block2 ?? line ?? dollars ?? boxed, display: (block ?? block2) != null });
    return `\ue000${formulas.length - 1}\ue001`;
  });
  const box = h("div", { class: "answer" });
  const clean = DOMPurify.sanitize(marked.parse(marked_, { breaks: true }), { FORBID_TAGS: ["style", "form", "input", "img", "svg", "video", "audio"], FORBID_ATTR: ["style", "class", "id"], RETURN_DOM_FRAGMENT: true });
  box.append(clean);
  for (const link of box.querySelectorAll("a")) { link.rel = "noopener noreferrer"; link.target = "_blank"; }
  const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  const places = [];
  while (walk.nextNode()) if (walk.currentNode.data.includes("\ue000")) places.push(walk.currentNode);
  for (const place of places) {
    place.replaceWith(...place.data.split(/(\ue000\d+\ue001)/).map((piece) => {
      const found = /^\ue000(\d+)\ue001$/.exec(piece);
      if (!found) return document.createTextNode(piece);
      const { tex, display } = formulas[+found[1]];
      const span = h("span");
      try { katex.render(tex, span, { displayMode: display, throwOnError: true, trust: false, maxExpand: 200 }); } catch { span.textContent = tex; }
      return span;
    }));
  }
  return box;
}

function probable(tokens) {
  return h("div", { class: "said" }, tokens.map(({ token, logprob, top_logprobs }) => {
    const share = Math.exp(logprob);
    const others = top_logprobs.map((one) => `${JSON.stringify(one.token)} ${(100 * Math.exp(one.logprob)).toFixed(1)} %`).join("\n");
    return h("span", { class: "tok", title: `${(100 * share).toFixed(1)} %\n${others}`, style: `background: color-mix(in srgb, var(--given) ${Math.round(60 * (1 - share))}%, transparent)` }, token);
  }));
}

// One answer as it grows: its thinking folded when the answer begins.
function growing(title = "") {
  const thought = h("div", { class: "said" });
  const summary = h("summary", {}, "thinking …");
  const folded = h("details", { class: "thinking", hidden: true, open: true }, summary, thought);
  const answer = h("div", { class: "answer" });
  const meta = h("p", { class: "meta" });
  const element = h("article", { class: "card turn assistant" }, title && h("p", { class: "meta" }, title), folded, answer, meta);
  const said = { thought: "", answer: "", tokens: [], count: 0 };
  return {
    element, said, meta,
    hear(delta, logprobs) {
      if (delta.reasoning_content) { said.thought += delta.reasoning_content; folded.hidden = false; thought.textContent = said.thought; }
      if (delta.content) {
        if (!said.answer) { folded.open = false; summary.textContent = "what it thought"; }
        said.answer += delta.content;
        answer.textContent = said.answer;
      }
      if (logprobs) said.tokens.push(...logprobs.content);
    },
    end(reason) {
      if (said.thought) summary.textContent = said.answer ? "what it thought" : "thinking that was cut off";
      answer.replaceChildren(...(said.tokens.length ? [probable(said.tokens)] : [rendered(said.answer)]));
      meta.textContent = reason === "length" ? "cut off: the length or the model's room was spent" : "";
    },
    fail(message) { meta.replaceChildren(h("span", { class: "error" }, message)); },
  };
}

// What the server's reward model says of an answer, where it has one.
async function weigh(asked, said) {
  const body = JSON.stringify({ messages: [...asked, { role: "assistant", content: said.content, reasoning_content: said.reasoning_content || null }] });
  const answer = await ask("/api/opinion", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error?.message ?? answer.statusText);
  return told;
}

const opinion = (told) => h("details", { class: "judged" }, h("summary", {}, `the judge gives it ${number(told.grade, 2)}`),
  h("p", { class: "said" }, told.steps.map(({ text: step, grade }) => [h("span", { class: "tok", title: `${number(grade, 3)}`, style: `background: color-mix(in srgb, var(--wrong) ${Math.round(60 * (1 - grade))}%, transparent)` }, step), " "])));

// --- asking

async function post(path, body, hear, signal = leaving.signal) {
  const answer = await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error((await answer.json()).error?.message ?? answer.statusText);
  if (!body.stream) return answer.json();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return null;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      hear(told);
    }
  }
}

const messages = () => state.turns.map(({ role, content, thought }) => (thought ? { role, content, reasoning_content: thought } : { role, content }));
const asked = (model, more = {}) => ({ model, messages: messages(), temperature: state.temperature, stream: true, ...(state.length ? { max_tokens: state.length } : {}),
  ...(state.budget ? { thinking_budget: state.budget } : {}), ...(state.probabilities ? { logprobs: true, top_logprobs: 5 } : {}), ...more });

async function one(model, place, title) {
  const growth = growing(title);
  place.append(growth.element);
  try {
    let reason = "";
    await post("/v1/chat/completions", asked(model), ({ choices }) => choices.forEach((choice) => { growth.hear(choice.delta, choice.logprobs); reason = choice.finish_reason ?? reason; follow(); }));
    growth.end(reason);
  } catch (error) {
    const stopped = error.name === "AbortError"; // what was said until then stays in the conversation
    growth.said.failed = !stopped || !(growth.said.answer || growth.said.thought);
    growth.fail(stopped ? "stopped" : error.message);
  }
  return growth;
}

// The opinion is asked for when the answer is there, and nobody waits for it; who cannot give one says why below it.
async function opined(asked, said, place) {
  if (!state.models[0]?.judge || !said.content) return null;
  try {
    const told = await weigh(asked, said);
    place.append(opinion(told));
    return told.grade;
  } catch (error) { place.append(h("p", { class: "meta" }, `no opinion: ${error.message}`)); return null; }
}

const boxed = (said) => /\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}/.exec(said)?.[1] ?? said.trim();

async function several(place) {
  const found = await post("/v1/chat/completions", asked(state.model, { stream: false, n: state.samples, logprobs: false, top_logprobs: undefined }));
  const votes = new Map();
  for (const { message } of found.choices) votes.set(boxed(message.content), [...(votes.get(boxed(message.content)) ?? []), message]);
  const ranked = [...votes].sort((a, b) => b[1].length - a[1].length);
  const growth = growing(`the most frequent of ${found.choices.length} answers`);
  growth.hear({ reasoning_content: ranked[0][1][0].reasoning_content, content: ranked[0][1][0].content });
  growth.end("");
  const before = messages();
  growth.element.append(h("details", { class: "votes" }, h("summary", {}, "all answers"), ranked.map(([answer, few]) => {
    const weight = h("span", { class: "soft" });
    const cards = few.map((message) => h("div", { class: "card" }, message.reasoning_content && h("div", { class: "thinking said" }, message.reasoning_content), rendered(message.content)));
    Promise.all(few.map((message, at) => opined(before, message, cards[at]))).then((grades) => {
      if (grades.some((grade) => grade != null)) weight.textContent = `, the judge gives ${number(grades.reduce((sum, grade) => sum + (grade ?? 0), 0), 2)} in all`;
    });
    return h("details", {}, h("summary", {}, h("b", {}, `${few.length} × `), answer || "(none)", weight), cards);
  })));
  place.append(growth.element);
  return growth;
}

async function searched(place) {
  const found = await post("/v1/chat/completions", asked(state.model, { stream: false, search: state.search, logprobs: false, top_logprobs: undefined, thinking_budget: undefined }));
  const { message } = found.choices[0];
  const growth = growing(`${state.search}: ${number(found.search.tokens)} tokens; ${found.search.end}`);
  growth.hear({ reasoning_content: message.reasoning_content, content: message.content });
  growth.end("");
  if (found.search.votes.length) growth.element.append(h("p", { class: "meta" }, found.search.votes.map(([answer, count]) => `${count} × ${answer}`).join(" · ")));
  if (found.search.tree.length) growth.element.append(h("details", {}, h("summary", {}, `${found.search.tree.length} thoughts`), tree(found.search.tree)));
  place.append(growth.element);
  return growth;
}

async function goOn(place, begun) {
  const said = h("span");
  const prompt = state.examples ? `${state.examples.trimEnd()}\n${begun}` : begun;
  const box = h("article", { class: "card said turn" }, h("span", { class: "soft" }, prompt), said);
  place.append(box);
  await post("/v1/completions", { model: state.model, prompt, ...(state.line ? { stop: ["\n"] } : {}), max_tokens: state.length || 64, temperature: state.temperature, stream: true }, ({ choices }) => choices.forEach((choice) => { said.textContent += choice.text; follow(); }));
}

async function duel(place, question) {
  const names = state.models.map((model) => model.id);
  let [left, right] = [state.model, state.other ?? names.find((name) => name !== state.model) ?? state.model];
  if (Math.random() < 0.5) [left, right] = [right, left];
  const pair = h("div", { class: "pair" });
  const choices = h("p", { class: "bar" });
  place.append(pair, choices);
  const answers = await Promise.all([one(left, pair, "left"), one(right, pair, "right")]);
  if (answers.some((answer) => answer.meta.querySelector(".error"))) return;
  const choose = (winner, words) => h("button", { onclick: async () => {
    choices.replaceChildren(h("span", {}, "left was ", h("b", {}, left), ", right was ", h("b", {}, right)));
    try {
      await post("/api/votes", { left, right, winner, question: question.slice(0, 20000) }, null, null);
      board();
    } catch (error) { choices.append(h("span", { class: "error" }, ` the vote could not be kept: ${error.message}`)); }
  } }, words);
  choices.append("Which is better?", choose("left", "left"), choose("tie", "neither"), choose("right", "right"));
}

async function board() {
  const rows = await get("/api/leaderboard");
  const place = document.getElementById("board");
  if (place) place.replaceChildren(h("h2", {}, "leaderboard"), rows.length ? h("table", {}, h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, row.name), h("td", { class: "num", title: `95 % interval; ${row.duels} duels` }, `${Math.round(row.strength)} (${Math.round(row.low)}–${Math.round(row.high)})`))))) : h("p", { class: "soft" }, "nobody has chosen yet"));
}

// --- the page

const follow = () => { if (innerHeight + scrollY > document.body.scrollHeight - 160) scrollTo(0, document.body.scrollHeight); };

async function submit() {
  const said = text.value;
  if (!said.trim() || leaving) return;
  leaving = new AbortController();
  text.value = "";
  send.disabled = true;
  stop.hidden = false;
  const place = h("section");
  main.append(place);
  let turns = state.turns; // of this conversation: it may be left before the answer is there
  try {
    if (state.mode === "text") await goOn(place, said);
    else {
      place.append(h("div", { class: "turn user" }, h("div", { class: "body" }, said)));
      if (state.mode === "duel") { state.turns = turns = [{ role: "user", content: said }]; await duel(place, said); }
      else {
        turns.push({ role: "user", content: said });
        const growth = state.search ? await searched(place) : state.samples > 1 ? await several(place) : await one(state.model, place);
        if (growth.said.failed) turns.pop();
        else {
          if (state.turns === turns && (state.search || state.samples === 1)) opined(messages(), { content: growth.said.answer, reasoning_content: growth.said.thought }, growth.element);
          turns.push({ role: "assistant", content: growth.said.answer, thought: growth.said.thought });
        }
      }
    }
  } catch (error) {
    place.append(h("p", { class: "error" }, error.name === "AbortError" ? "stopped" : error.message));
    if (turns.at(-1)?.role === "user") turns.pop();
  }
  leaving = null;
  send.disabled = false;
  stop.hidden = true;
  follow();
  text.focus();
}

function anew() { leaving?.abort(); state.turns = []; main.replaceChildren(h("p", { class: "soft" }, state.mode === "text" ? "Write the beginning of a text; a few examples first make a base model do as they do." : state.mode === "duel" ? "Two models answer, you choose, and then you are told which was which." : "A new conversation.")); }

function settings() {
  const slide = (label, key, options, told) => { const name = h("span", {}, `${label}: ${told(state[key])}`); return h("label", {}, name, h("input", { type: "range", ...options, value: state[key], oninput: (event) => { state[key] = +event.target.value; name.textContent = `${label}: ${told(state[key])}`; } })); };
  const names = state.models.map((model) => [model.id, model.id]);
  const room = state.models[0]?.max_model_len ?? 512;
  const chat = state.mode === "chat";
  document.getElementById("nav").replaceChildren(...Object.entries(MODES).map(([key, words]) => h("a", { href: `#${key}`, "aria-current": key === state.mode ? "page" : null }, words)));
  document.getElementById("settings").replaceChildren(...[
    field("model", select(names, state.model, (value) => { state.model = value; })),
    state.mode === "duel" && field("against", select(names, state.other ?? "", (value) => { state.other = value; })),
    slide("temperature", "temperature", { min: 0, max: 2, step: 0.05 }, (value) => value || "0, the likeliest"),
    slide("tokens at most", "length", { min: 0, max: Math.max(64, room - 32), step: 8 }, (value) => value || (state.mode === "text" ? "64" : "what there is room for")),
    state.mode !== "text" && slide("thinking budget", "budget", { min: 0, max: Math.max(64, room - 64), step: 4 }, (value) => value || "as it likes"),
    chat && slide("samples", "samples", { min: 1, max: 16, step: 1 }, (value) => (value > 1 ? `${value}, the most frequent` : "1")),
    chat && field("search", select([["", "none"], ["vote?samples=16", "vote of 16"], ["force?least=32&most=96", "think at least 32 tokens"], ["revise?samples=3", "three attempts in a row"],
      ...(state.models[0]?.judge ? [["best_of_n?samples=16&values=judge", "best of 16 by the judge"], ["weighted_vote?samples=16&values=judge", "vote of 16, weighed by the judge"]] : [])], state.search, (value) => { state.search = value; })),
    chat && h("label", { class: "check wide" }, h("input", { type: "checkbox", checked: state.probabilities, onchange: (event) => { state.probabilities = event.target.checked; } }), "token probabilities"),
    state.mode === "text" && h("label", { class: "wide" }, "examples, in front of every text", h("textarea", { rows: 5, placeholder: "2 + 2 = 4\n3 + 5 = 8", oninput: (event) => { state.examples = event.target.value; } }, state.examples)),
    state.mode === "text" && h("label", { class: "check wide" }, h("input", { type: "checkbox", checked: state.line, onchange: (event) => { state.line = event.target.checked; } }), "one line only"),
    h("button", { type: "button", class: "wide", onclick: anew }, "start anew"),
    state.mode === "duel" && h("div", { id: "board", class: "wide" }),
  ].filter(Boolean));
  if (state.mode === "duel") board();
}

function turn() {
  state.mode = MODES[location.hash.slice(1)] ? location.hash.slice(1) : "chat";
  settings();
  anew();
}

document.getElementById("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); submit(); } });
stop.addEventListener("click", () => leaving?.abort());
addEventListener("hashchange", turn);

async function models() {
  state.models = (await get("/v1/models")).data;
  const names = state.models.map((model) => model.id); // checkpoints come and go
  if (!names.includes(state.model)) state.model = names[0];
  if (!names.includes(state.other)) delete state.other;
}

await models();
turn();
text.focus();
const listed = () => JSON.stringify(state.models);
setInterval(async () => { const before = listed(); try { await models(); } catch { return; } if (listed() !== before && !leaving) settings(); }, 10000);
