// The chat page: chat, completion and arena. What models write enters the page as text, or through markdown.js.

import { field, formatNumber, getJson, h, readJson, request, searchTree, select } from "./common.js";
import { renderMarkdown } from "./markdown.js";

const main = document.getElementById("main");
const input = document.getElementById("message");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const MODES = new Map([["chat", "Chat"], ["completion", "Completion"], ["arena", "Arena"]]);
const EMPTY = {
  chat: "New chat. Ask a question below.",
  completion: "Write the beginning of a text. Few-shot examples help a base model to follow a pattern.",
  arena: "Two models answer. Choose the better answer; then their names are shown.",
};
const PLACEHOLDERS = { chat: "Ask something.", completion: "Write the beginning of a text.", arena: "Ask both models something." };
const CUT_OFF = "Cut off: max tokens or the context length was reached.";
const RELOAD_MODELS = 10000; // milliseconds

const state = {
  mode: "chat", models: [], model: "", opponent: "", temperature: 0.7, maxTokens: 0, thinkingBudget: 0, samples: 1, search: "",
  probabilities: false, examples: "", stopAtNewline: false, conversation: [],
};
let pending = null; // the AbortController of the request that is being answered

// --- responses

// A shade of a colour, from nothing at 0 to strong at 1.
const shade = (colour, amount) => `background: color-mix(in srgb, ${colour} ${Math.round(60 * amount)}%, transparent)`;
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

function tokenProbabilities(tokens) {
  return h("div", { class: "mono" }, tokens.map(({ token, logprob, top_logprobs }) => {
    const alternatives = top_logprobs.map((other) => `${JSON.stringify(other.token)} ${percent(other.logprob)}`);
    return h("span", { class: "token", title: [percent(logprob), ...alternatives].join("\n"), style: shade("var(--context)", 1 - Math.exp(logprob)) }, token);
  }));
}

// One response as it is streamed; its thinking folds when the answer begins.
function responseCard(title = "") {
  const thinking = h("div", { class: "mono" });
  const summary = h("summary", {}, "Thinking …");
  const details = h("details", { class: "thinking", hidden: true, open: true }, summary, thinking);
  const answer = h("div", { class: "streaming" });
  const note = h("p", { class: "note-line" });
  const element = h("article", { class: "card turn assistant" }, title && h("p", { class: "note-line" }, title), details, answer, note);
  const response = { thinking: "", answer: "", tokens: [], failed: false };
  return {
    element, response,
    append(delta, logprobs) {
      if (delta.reasoning_content) {
        response.thinking += delta.reasoning_content;
        details.hidden = false;
        thinking.textContent = response.thinking;
      }
      if (delta.content) {
        if (!response.answer) { details.open = false; summary.textContent = "Thinking"; }
        response.answer += delta.content;
        answer.textContent = response.answer;
      }
      if (logprobs) response.tokens.push(...logprobs.content);
    },
    finish(reason) {
      if (response.thinking) summary.textContent = response.answer ? "Thinking" : "Thinking (cut off)";
      answer.replaceWith(response.tokens.length ? tokenProbabilities(response.tokens) : renderMarkdown(response.answer));
      note.textContent = reason === "length" ? CUT_OFF : "";
    },
    fail(message) { note.replaceChildren(h("span", { class: "error" }, message)); },
  };
}

// --- the server's reward model, where it has one

function rewardDetails({ reward, steps }) {
  const step = (one) => [h("span", { class: "token", title: formatNumber(one.reward), style: shade("var(--danger)", 1 - one.reward) }, one.text), " "];
  return h("details", { class: "reward" }, h("summary", {}, `Reward: ${formatNumber(reward, 2)}`), h("p", { class: "mono" }, steps.map(step)));
}

// The reward is added below a finished answer; nothing waits for it. Returns the reward, or null where there is none.
async function addReward(conversation, { content, reasoning_content }, place) {
  if (!state.models[0]?.reward_model || !content) return null;
  const body = { messages: [...conversation, { role: "assistant", content, reasoning_content: reasoning_content || null }] };
  try {
    const graded = await postJson("/api/reward", body);
    place.append(rewardDetails(graded));
    return graded.reward;
  } catch (error) {
    place.append(h("p", { class: "note-line" }, `No reward: ${error.message}`));
    return null;
  }
}

// --- requests

const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
const postJson = async (path, body, signal) => readJson(await post(path, body, signal));

// Server-sent events: onEvent for each, until [DONE].
async function postStream(path, body, onEvent, signal) {
  const response = await post(path, { ...body, stream: true }, signal);
  if (!response.ok) await readJson(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (incomplete + value).split("\n\n");
    incomplete = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(parsed.error.message);
      onEvent(parsed);
    }
  }
}

const messages = () => state.conversation.map(({ role, content, thinking }) => (thinking ? { role, content, reasoning_content: thinking } : { role, content }));

const chatRequest = (model) => ({
  model, messages: messages(), temperature: state.temperature,
  ...(state.maxTokens ? { max_tokens: state.maxTokens } : {}),
});
const budget = () => (state.thinkingBudget ? { thinking_budget: state.thinkingBudget } : {});
const logprobs = () => (state.probabilities ? { logprobs: true, top_logprobs: 5 } : {});

async function singleResponse(model, place, title) {
  const card = responseCard(title);
  place.append(card.element);
  try {
    let reason = "";
    await postStream("/v1/chat/completions", { ...chatRequest(model), ...budget(), ...logprobs() }, ({ choices }) => choices.forEach((choice) => {
      card.append(choice.delta, choice.logprobs);
      reason = choice.finish_reason ?? reason;
      scrollWithText();
    }), pending.signal);
    card.finish(reason);
  } catch (error) {
    const stopped = error.name === "AbortError"; // what was written until then stays in the conversation
    card.response.failed = !stopped || !(card.response.answer || card.response.thinking);
    card.fail(stopped ? "Stopped" : error.message);
  }
  return card;
}

const finalAnswer = (content) => /\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}/.exec(content)?.[1] ?? content.trim();

async function majorityVote(place) {
  const { choices } = await postJson("/v1/chat/completions", { ...chatRequest(state.model), ...budget(), n: state.samples }, pending.signal);
  const votes = Map.groupBy(choices.map((choice) => choice.message), (message) => finalAnswer(message.content));
  const ranked = [...votes].sort((a, b) => b[1].length - a[1].length);
  const card = responseCard(`Majority vote of ${choices.length} samples`);
  card.append(ranked[0][1][0]);
  card.finish("");
  const conversation = messages();
  card.element.append(h("details", { class: "votes" }, h("summary", {}, "All samples"), ranked.map(([answer, samples]) => {
    const total = h("span", { class: "soft" });
    const cards = samples.map((message) => h("div", { class: "card" },
      message.reasoning_content && h("div", { class: "thinking mono" }, message.reasoning_content), renderMarkdown(message.content)));
    Promise.all(samples.map((message, index) => addReward(conversation, message, cards[index]))).then((rewards) => {
      if (rewards.some((reward) => reward != null)) total.textContent = `, total reward ${formatNumber(rewards.reduce((sum, reward) => sum + (reward ?? 0), 0), 2)}`;
    });
    return h("details", {}, h("summary", {}, h("b", {}, `${samples.length} × `), answer || "(no answer)", total), cards);
  })));
  place.append(card.element);
  return card;
}

async function searchResponse(place) {
  const { choices: [{ message }], search } = await postJson("/v1/chat/completions", { ...chatRequest(state.model), search: state.search }, pending.signal);
  const card = responseCard(`${state.search} · ${formatNumber(search.tokens)} tokens · ${search.stop_reason}`);
  card.append(message);
  card.finish("");
  if (search.votes.length) card.element.append(h("p", { class: "note-line" }, "Votes: ", search.votes.map(([answer, count], index) => [index ? " · " : "", h("b", {}, `${count} × `), answer])));
  if (search.tree.length) card.element.append(h("details", {}, h("summary", {}, `Search tree: ${search.tree.length} thoughts`), searchTree(search.tree)));
  place.append(card.element);
  return card;
}

async function complete(place, text) {
  const completion = h("span");
  const prompt = state.examples ? `${state.examples.trimEnd()}\n${text}` : text;
  place.append(h("article", { class: "card mono turn completion" }, h("span", { class: "soft" }, prompt), completion));
  const body = { model: state.model, prompt, max_tokens: state.maxTokens || 64, temperature: state.temperature, ...(state.stopAtNewline ? { stop: ["\n"] } : {}) };
  await postStream("/v1/completions", body, ({ choices }) => choices.forEach((choice) => {
    completion.textContent += choice.text;
    scrollWithText();
  }), pending.signal);
}

// --- arena

async function compareModels(place, question) {
  let [left, right] = [state.model, state.opponent];
  if (Math.random() < 0.5) [left, right] = [right, left];
  const pair = h("div", { class: "pair" });
  const vote = h("p", { class: "bar" });
  place.append(pair, vote);
  const cards = await Promise.all([singleResponse(left, pair, "Left"), singleResponse(right, pair, "Right")]);
  if (cards.some((card) => card.element.querySelector(".error"))) return;
  const choose = (winner, label) => h("button", { type: "button", onclick: async () => {
    vote.replaceChildren(h("span", {}, "Left: ", h("b", {}, left), " · Right: ", h("b", {}, right)));
    try {
      await postJson("/api/votes", { left, right, winner, question: question.slice(0, 20000) });
      showLeaderboard();
    } catch (error) { vote.append(h("span", { class: "error" }, `The vote was not saved: ${error.message}`)); }
  } }, label);
  vote.append("Which answer is better?", choose("left", "Left"), choose("tie", "Tie"), choose("right", "Right"));
}

async function showLeaderboard() {
  let content;
  try {
    const rows = await getJson("/api/leaderboard");
    const rating = (row) => h("td", { class: "num", title: `95 % interval; ${row.num_battles} votes` }, `${Math.round(row.rating)} (${Math.round(row.low)}–${Math.round(row.high)})`);
    content = rows.length ? h("table", {}, h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, row.name), rating(row))))) : h("p", { class: "soft" }, "No votes yet.");
  } catch (error) { content = h("p", { class: "error" }, error.message); }
  document.getElementById("leaderboard")?.replaceChildren(h("h2", {}, "Leaderboard"), content);
}

// --- the page

const scrollWithText = () => { if (innerHeight + scrollY > document.body.scrollHeight - 160) scrollTo(0, document.body.scrollHeight); };

async function submit() {
  const text = input.value;
  if (!text.trim() || pending || !state.models.length) return;
  pending = new AbortController();
  input.value = "";
  send.disabled = true;
  stop.hidden = false;
  const place = h("section");
  main.append(place);
  let conversation = state.conversation; // a new chat may begin before the answer is there
  try {
    if (state.mode === "completion") await complete(place, text);
    else {
      place.append(h("div", { class: "turn user" }, h("div", { class: "body" }, text)));
      if (state.mode === "arena") {
        state.conversation = conversation = [{ role: "user", content: text }];
        await compareModels(place, text);
      } else {
        conversation.push({ role: "user", content: text });
        const { response, element } = await (state.search ? searchResponse(place) : state.samples > 1 ? majorityVote(place) : singleResponse(state.model, place));
        if (response.failed) conversation.pop();
        else {
          const single = state.search || state.samples === 1;
          if (state.conversation === conversation && single) addReward(messages(), { content: response.answer, reasoning_content: response.thinking }, element);
          conversation.push({ role: "assistant", content: response.answer, thinking: response.thinking });
        }
      }
    }
  } catch (error) {
    place.append(h("p", { class: "error" }, error.name === "AbortError" ? "Stopped" : error.message));
    if (conversation.at(-1)?.role === "user") conversation.pop();
  }
  pending = null;
  send.disabled = false;
  stop.hidden = true;
  scrollWithText();
  input.focus();
}

function newChat() {
  pending?.abort();
  state.conversation = [];
  main.replaceChildren(h("p", { class: "soft" }, EMPTY[state.mode]));
}

function slider(label, key, options, format) {
  const text = () => `${label}: ${format(state[key])}`;
  const name = h("span", {}, text());
  return h("label", {}, name, h("input", { type: "range", ...options, value: state[key], oninput: (event) => { state[key] = +event.target.value; name.textContent = text(); } }));
}

const checkbox = (label, key) => h("label", { class: "check wide" },
  h("input", { type: "checkbox", checked: state[key], onchange: (event) => { state[key] = event.target.checked; } }), label);

const SEARCHES = [["", "None"], ["vote?samples=16", "Majority vote of 16"], ["budget_force?min_think=32&max_think=96", "Budget forcing: think 32 to 96 tokens"], ["revise?samples=3", "Sequential revision: 3 attempts"]];
const REWARD_SEARCHES = [["best_of_n?samples=16&values=reward_model", "Best of 16 by reward"], ["weighted_vote?samples=16&values=reward_model", "Vote of 16, weighted by reward"]];

// The models of the arena differ where there are two: choosing the other one swaps them.
function chooseModel(name) {
  if (name === state.opponent) state.opponent = state.model;
  state.model = name;
  showSettings();
}

function showSettings() {
  const names = state.models.map((model) => [model.id, model.id]);
  const contextLength = state.models[0]?.max_model_len ?? 512;
  const [chat, completion, arena] = [...MODES.keys()].map((mode) => mode === state.mode);
  const unused = []; // controls without an effect on a search
  const withoutSearch = (control) => { unused.push(control); return control; };
  const hideUnused = () => unused.forEach((control) => { control.style.display = chat && state.search ? "none" : ""; });
  document.getElementById("modes").replaceChildren(...[...MODES].map(([mode, label]) =>
    h("a", { href: `#${mode}`, "aria-current": mode === state.mode ? "true" : null }, label)));
  document.getElementById("settings").replaceChildren(...[
    field(arena ? "Model A" : "Model", select(names, state.model, chooseModel)),
    arena && field("Model B", select(names, state.opponent, (value) => { state.opponent = value; })),
    arena && names.length === 1 && h("p", { class: "soft wide" }, "The server has only one model. To compare the checkpoints of a run, start the server with the folder of the run."),
    slider("Temperature", "temperature", { min: 0, max: 2, step: 0.05 }, (value) => value || "0 (greedy)"),
    slider("Max tokens", "maxTokens", { min: 0, max: Math.max(64, contextLength - 32), step: 8 }, (value) => value || (completion ? 64 : "context limit")),
    !completion && withoutSearch(slider("Thinking budget", "thinkingBudget", { min: 0, max: Math.max(64, contextLength - 64), step: 4 }, (value) => value || "unlimited")),
    chat && withoutSearch(slider("Samples", "samples", { min: 1, max: 16, step: 1 }, (value) => (value > 1 ? `${value} (majority vote)` : "1"))),
    chat && field("Search", select([...SEARCHES, ...(state.models[0]?.reward_model ? REWARD_SEARCHES : [])], state.search, (value) => { state.search = value; hideUnused(); })),
    chat && withoutSearch(checkbox("Token probabilities", "probabilities")),
    completion && h("label", { class: "wide" }, "Few-shot examples, before every prompt",
      h("textarea", { rows: 5, placeholder: "2 + 2 = 4\n3 + 5 = 8", oninput: (event) => { state.examples = event.target.value; } }, state.examples)),
    completion && checkbox("Stop at the end of a line", "stopAtNewline"),
    h("button", { type: "button", class: "wide", onclick: newChat }, "New chat"),
    arena && h("div", { id: "leaderboard", class: "wide" }),
  ].filter(Boolean));
  hideUnused();
  if (arena) showLeaderboard();
}

function switchMode() {
  const mode = location.hash.slice(1);
  state.mode = MODES.has(mode) ? mode : "chat";
  input.placeholder = `${PLACEHOLDERS[state.mode]} Enter sends, Shift+Enter starts a new line.`;
  showSettings();
  newChat();
}

async function loadModels() {
  state.models = (await getJson("/v1/models")).data;
  const names = state.models.map((model) => model.id); // checkpoints of a run that trains come and go
  if (!names.includes(state.model)) state.model = names[0];
  if (!names.includes(state.opponent)) state.opponent = names.find((name) => name !== state.model) ?? names[0];
}

async function reloadModels() {
  const before = JSON.stringify(state.models);
  try { await loadModels(); } catch { return; }
  if (JSON.stringify(state.models) !== before && !pending) showSettings();
}

document.getElementById("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
input.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); submit(); } });
stop.addEventListener("click", () => pending?.abort());

try {
  await loadModels();
  addEventListener("hashchange", switchMode);
  switchMode();
  input.focus();
  setInterval(reloadModels, RELOAD_MODELS);
} catch (error) {
  main.replaceChildren(h("p", { class: "error" }, `The models could not be loaded: ${error.message}`), h("p", { class: "soft" }, "Reload the page to try again."));
}
