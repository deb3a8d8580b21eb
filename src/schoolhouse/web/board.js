// The board: one view for each address after the #, drawn from what the server reads in run folders.

import { field, formatDuration, formatNumber, getJson, h, image, postQuery, queryString, searchTree, select } from "./common.js";

const main = document.getElementById("main");
const RELOAD = 3000; // milliseconds between requests for a run in progress
const FIRST_METRICS = ["reward", "loss", "eval.overall.pass_at_1", "entropy", "completion_tokens_correct", "groups_with_signal", "bits_per_byte"];
const COLOURS = ["#3b78c4", "#d2692b", "#2f9a62", "#b8479b", "#7a63c9", "#b58a00", "#4aa3b5", "#c9484a"];
const STATE_CLASSES = new Map([["running", "success"], ["killed", "danger"], ["damaged", "danger"]]);
let reloadTimer = 0;
let viewNumber = 0; // counts drawn views; an answer that arrives for an earlier one is dropped

const address = () => {
  const [view, params] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: VIEWS.has(view) ? view : "runs", query: new URLSearchParams(params) };
};
const link = (view, query = {}) => `#/${view}?${queryString(query)}`;
const go = (view, query) => { location.hash = link(view, query); };
const cell = (text, numeric = false) => h("td", { class: numeric ? "num" : "" }, text);
const head = (...names) => h("thead", {}, h("tr", {}, names.map((name) => (name.startsWith("#") ? h("th", { class: "num" }, name.slice(1)) : h("th", {}, name)))));
const table = (header, rows) => h("div", { class: "scroll" }, h("table", {}, header, h("tbody", {}, rows)));
const clip = (text, title) => h("td", {}, h("div", { class: "clip", title }, text));
const stateLabel = (state) => h("span", { class: `state ${STATE_CLASSES.get(state) ?? ""}` }, state);
const nameOf = (run) => (run === "." ? "(this folder)" : run);
const runLink = (run) => h("a", { href: link("run", { name: run }) }, nameOf(run));
const rewardClass = (reward) => (reward == null ? "" : reward >= 1 ? "success" : "danger");
// A row that opens a view, by mouse or keyboard.
const openingRow = (open, ...cells) => h("tr", { class: "opens", tabindex: 0, onclick: open, onkeydown: (event) => event.key === "Enter" && open() }, cells);

// --- runs

async function runs(show) {
  const rows = await getJson("/api/runs");
  const chosen = new Set(address().query.getAll("name"));
  const compare = h("button", { type: "button", onclick: () => go("run", { name: [...chosen] }) }, "Side by side");
  const differ = h("button", { type: "button", onclick: () => go("difference", { name: [...chosen] }) }, "Compare configs");
  const enable = () => { compare.disabled = chosen.size < 2; differ.disabled = chosen.size !== 2; };
  const body = rows.map((run) => h("tr", {},
    h("td", {}, h("input", { type: "checkbox", "aria-label": `Select ${run.name}`, checked: chosen.has(run.name),
      onchange: (event) => { if (event.target.checked) chosen.add(run.name); else chosen.delete(run.name); enable(); } })),
    h("td", {}, runLink(run.name)),
    cell(run.recipe), h("td", {}, stateLabel(run.state)),
    cell(run.steps_total ? `${run.steps_done} of ${run.steps_total}` : String(run.steps_done), true), cell(formatDuration(run.seconds), true), cell(run.result)));
  enable();
  show(h("h1", {}, "Runs"), ...(rows.length ? [
    h("div", { class: "bar" }, compare, differ, h("span", { class: "soft" }, "Select two or more runs to see them side by side, or two runs to compare their configs.")),
    table(head("", "Run", "Recipe", "State", "#Steps", "#Time", "Result"), body),
  ] : [h("p", { class: "soft" }, "No runs in this folder yet. `school quickstart` makes the first ones.")]));
  return rows.some((run) => run.state === "running");
}

// --- one run, or several side by side

async function run(show) {
  const { query } = address();
  const names = query.getAll("name");
  const infos = await Promise.all(names.map((name) => getJson("/api/run", { name })));
  const known = [...new Set(infos.flatMap((info) => info.metrics))];
  const defaults = FIRST_METRICS.filter((name) => known.includes(name)).slice(0, 4);
  const metrics = query.getAll("metric").length ? query.getAll("metric") : defaults.length ? defaults : known.slice(0, 4);
  const xAxis = query.get("x_axis") ?? "step";
  const smooth = +(query.get("smooth") ?? 0);
  const band = query.get("band") === "1";
  const change = (changes) => go("run", { name: names, metric: metrics, x_axis: xAxis, smooth, band: band ? 1 : "", ...changes });
  const toggle = (metric, shown) => change({ metric: shown ? [...metrics, metric] : metrics.filter((other) => other !== metric) });
  const curves = metrics.length ? await getJson("/api/curves", { name: names, metric: metrics, x_axis: xAxis }) : [];
  const single = infos.length === 1 ? infos[0] : null;
  const plots = h("div", { class: "plots" });
  show(
    h("h1", {}, names.map(nameOf).join(", ")),
    single && h("p", {}, stateLabel(single.state), ` · ${single.recipe}, ${single.steps_total ? `${single.steps_done} of ${single.steps_total}` : single.steps_done} steps, ${formatDuration(single.seconds)}`,
      single.has_rollouts && [" · ", h("a", { href: link("rollouts", { name: single.name }) }, "Rollouts")],
      single.tree_steps.length > 0 && [" · ", h("a", { href: link("trees", { name: single.name, step: single.tree_steps.at(-1) }) }, "Search trees")]),
    single?.advice.map((text) => h("p", { class: "note" }, text)),
    single?.group_summary && h("p", {}, single.group_summary),
    h("div", { class: "bar" },
      field("X axis", select([["step", "steps"], ["tokens", "sampled tokens"], ["seconds", "seconds"]], xAxis, (value) => change({ x_axis: value }))),
      field(`Smoothing: ${smooth} steps`, h("input", { type: "range", min: 0, max: 50, value: smooth, onchange: (event) => change({ smooth: event.target.value }) })),
      names.length > 1 && field("Seeds of one config", select([["", "one line each"], ["1", "mean and range"]], band ? "1" : "", (value) => change({ band: value })))),
    h("details", {}, h("summary", {}, `Metrics (${metrics.length} of ${known.length} shown)`), h("div", { class: "picks" },
      known.map((name) => h("label", {}, h("input", { type: "checkbox", checked: metrics.includes(name), onchange: (event) => toggle(name, event.target.checked) }), " ", name)))),
    metrics.length ? plots : h("p", { class: "soft" }, "No metrics yet."),
    single && [h("h2", {}, "Config"), h("pre", { class: "card" }, JSON.stringify(single.config, null, 2)), h("h2", {}, "Environment"), h("pre", { class: "card" }, JSON.stringify(single.environment, null, 2))],
  );
  const openStep = (name, step) => { if (xAxis === "step") go("rollouts", { name, min_step: step, max_step: step }); };
  for (const metric of metrics) plot(plots, metric, xAxis, linesOf(curves, metric, infos, band), smooth, openStep);
  return infos.some((info) => info.state === "running");
}

// The mean of each value and the values before it, at most `width` of them.
function movingAverage(values, width) {
  if (!width) return values;
  return values.map((value, index) => {
    const window = values.slice(Math.max(0, index - width), index + 1).filter((other) => other != null);
    return value == null || !window.length ? null : window.reduce((sum, other) => sum + other, 0) / window.length;
  });
}

// A line's values at other places, interpolated; null before its first point and after its last.
export function interpolate(line, places) {
  const points = line.x.map((x, index) => [x, line.y[index]]).filter(([, y]) => y != null);
  let next = 0;
  return places.map((place) => {
    while (next < points.length && points[next][0] < place) next += 1;
    if (next === points.length || (!next && points[0][0] > place)) return null;
    const [x, y] = points[next];
    if (x === place) return y;
    const [x0, y0] = points[next - 1];
    return y0 + ((y - y0) * (place - x0)) / (x - x0);
  });
}

// Lines as { name, run, x, y, low, high }: one for each run, or one for each config with the range over its seeds.
function linesOf(curves, metric, infos, band) {
  const lines = curves.map((curve) => ({ name: curve.name, run: curve.name, x: curve.x, y: curve.y[metric] }));
  if (!band) return lines;
  const configs = Map.groupBy(lines, (_, index) => {
    const { seed, model, ...rest } = infos[index].config;
    return JSON.stringify([infos[index].recipe, rest]);
  });
  return [...configs.values()].map((seeds) => {
    const ranges = seeds.map(({ x }) => [x[0] ?? 0, x.at(-1) ?? 0]); // only where all seeds have values
    const first = Math.max(...ranges.map((ends) => ends[0])), last = Math.min(...ranges.map((ends) => ends[1]));
    const places = [...new Set(seeds.flatMap((line) => line.x))].filter((x) => x >= first && x <= last).sort((a, b) => a - b);
    const columns = seeds.map((line) => interpolate(line, places));
    const values = places.map((_, index) => columns.map((column) => column[index]).filter((value) => value != null));
    const reduced = (reduce) => values.map((row) => (row.length ? reduce(row) : null));
    return {
      name: seeds.length > 1 ? `${seeds[0].name} and ${seeds.length - 1} more` : seeds[0].name, run: seeds[0].run, x: places,
      y: reduced((row) => row.reduce((a, b) => a + b, 0) / row.length), low: reduced((row) => Math.min(...row)), high: reduced((row) => Math.max(...row)),
    };
  });
}

function plot(place, metric, xAxis, lines, smooth, openStep) {
  const box = h("div", { class: "card plot" }, h("h3", {}, metric));
  place.append(box);
  const x = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const indexOf = new Map(x.map((value, index) => [value, index]));
  const data = [x], series = [{ label: xAxis }], bands = [];
  lines.forEach((line, number) => {
    const colour = COLOURS[number % COLOURS.length];
    const column = (values) => {
      const full = new Array(x.length).fill(undefined);
      line.x.forEach((value, index) => { full[indexOf.get(value)] = values[index] ?? undefined; });
      return full;
    };
    data.push(column(movingAverage(line.y, smooth)));
    series.push({ label: line.name, stroke: colour, width: 1.5, spanGaps: true, value: (_, value) => formatNumber(value, 4) });
    if (line.low) {
      data.push(column(line.high), column(line.low));
      const edge = { stroke: colour, width: 0, spanGaps: true, points: { show: false }, value: (_, value) => formatNumber(value, 4) };
      series.push({ ...edge, label: "max" }, { ...edge, label: "min" });
      bands.push({ series: [data.length - 2, data.length - 1], fill: `${colour}33` });
    }
  });
  const grid = { stroke: "rgba(128,128,128,.2)", width: 1 };
  const axis = { stroke: getComputedStyle(main).color, grid, ticks: grid, font: "11px system-ui" };
  const xTick = (tick) => (tick >= 1e6 ? `${tick / 1e6}M` : tick >= 1e4 ? `${tick / 1e3}k` : tick);
  const yTick = (tick) => (tick && Math.abs(tick) < 1e-3 ? tick.toExponential(0) : formatNumber(tick, 4));
  const chart = new uPlot({
    width: Math.max(260, box.clientWidth - 34), height: 230, series, bands, scales: { x: { time: false } }, legend: { live: true },
    axes: [{ ...axis, values: (_, ticks) => ticks.map(xTick) }, { ...axis, size: 55, values: (_, ticks) => ticks.map(yTick) }],
    cursor: { drag: { x: true, y: false } },
  }, data, box);
  chart.over.title = xAxis === "step" ? "Click: samples of this step. Drag: zoom in. Double click: zoom out." : "Drag: zoom in. Double click: zoom out.";
  let pressed = 0;
  chart.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
  chart.over.addEventListener("click", (event) => {
    const index = chart.cursor.idx;
    if (index == null || Math.abs(event.clientX - pressed) >= 3) return; // a drag zooms
    const distance = (line) => {
      const y = line.y[line.x.indexOf(x[index])];
      return y == null ? Infinity : Math.abs(chart.valToPos(y, "y") - chart.cursor.top);
    };
    openStep(lines.reduce((a, b) => (distance(b) < distance(a) ? b : a)).run, x[index]);
  });
}

// --- rollouts

async function rollouts(show) {
  const query = Object.fromEntries(address().query);
  const change = (changes) => go("rollouts", { ...query, page: "", ...changes });
  const found = await getJson("/api/rollouts", query);
  const pages = Math.max(1, Math.ceil(found.total / found.per_page));
  const filter = (name, label, type = "number") => field(label, h("input", { type, step: "any", value: query[name] ?? "", onchange: (event) => change({ [name]: event.target.value }) }));
  const choice = (name, label, options, value = "") => field(label, select(options, query[name] ?? value, (chosen) => change({ [name]: chosen })));
  const turnPage = (by, label) => h("button", { type: "button", disabled: found.page + by < 0 || found.page + by >= pages, onclick: () => change({ page: found.page + by }) }, label);
  show(
    h("h1", {}, "Rollouts of ", runLink(query.name)),
    h("div", { class: "bar" },
      filter("min_step", "From step"), filter("max_step", "To step"), filter("problem", "Problem contains", "text"),
      choice("correctness", "Correctness", [["", "all"], ["correct", "correct"], ["incorrect", "incorrect"], ["ungraded", "not graded"]]),
      choice("finish_reason", "Finish reason", [["", "all"], ["stop", "stop"], ["length", "length"]]),
      filter("min_reward", "Min reward"), filter("max_reward", "Max reward"),
      choice("sort_by", "Sort by", [["step", "step"], ["reward", "reward"], ["completion_tokens", "completion length"], ["group_variance", "reward variance of the group"]], "step"),
      choice("descending", "Order", [["true", "descending"], ["false", "ascending"]], "true")),
    h("p", { class: "soft" }, `${found.total.toLocaleString("en")} rollouts`, found.indexed ? "" : ", indexing …"),
    table(head("#Step", "Problem", "#Reward", "#Group mean", "Thinking", "Answer", "Finish reason"), found.rows.map((row) =>
      openingRow(() => go("group", { name: query.name, step: row.step, problem: row.problem }),
        cell(row.step, true), clip(row.question || row.problem, row.problem),
        h("td", { class: `num ${rewardClass(row.reward)}`, title: row.reason }, formatNumber(row.reward)), cell(formatNumber(row.group_mean, 2), true),
        clip(row.thought ?? ""), clip(row.answer ?? ""), cell(row.finish_reason)))),
    h("div", { class: "bar pager" }, turnPage(-1, "Previous"), h("span", {}, `Page ${(found.page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`), turnPage(1, "Next")),
  );
  return !found.indexed;
}

// --- the group of one problem, token by token

// Types of tokens as the server names them: class, and name on the page.
const TOKEN_TYPES = new Map([
  ["prompt", ["", "prompt"]], ["thought", ["thinking-token", "thinking"]], ["answer", ["", "answer"]],
  ["context", ["context-token", "context or prefill"]],
]);
// What tokens can be coloured by: label, and whether a checkpoint has to score them.
const COLOURINGS = new Map([
  ["kind", ["Token type", false]], ["surprise", ["Surprise (-log p)", false]], ["advantage", ["Advantage", false]],
  ["entropy", ["Entropy under a checkpoint", true]], ["checkpoint_surprise", ["Surprise (-log p) under a checkpoint", true]],
]);

async function group(show) {
  const query = Object.fromEntries(address().query);
  const found = await getJson("/api/group", query);
  const title = h("h1", {}, `Step ${query.step}: `, query.problem);
  if (!found.rows.length) {
    show(title, h("p", { class: "soft" }, "Indexing the rollouts of this run …"));
    return true;
  }
  const { rows, history } = found;
  const colouring = COLOURINGS.has(query.colour) ? query.colour : "kind";
  const [, needsCheckpoint] = COLOURINGS.get(colouring);
  const scores = needsCheckpoint && (await postQuery("/api/rescore", { name: query.name, step: query.step, problem: query.problem, checkpoint: query.checkpoint }));
  const change = (changes) => go("group", { ...query, ...changes });
  const sample = (row, index) => h("article", { class: "card" },
    h("p", {}, h("b", { class: rewardClass(row.reward) }, `Reward ${formatNumber(row.reward)}`),
      ` · advantage ${row.advantage == null ? "–" : (row.advantage > 0 ? "+" : "") + formatNumber(row.advantage, 2)} · finish reason: ${row.finish_reason}`, row.reason && h("span", { class: "soft" }, ` · ${row.reason}`)),
    h("div", { class: "mono" }, row.tokens.map(([text, type, logprob], place) =>
      type !== "prompt" && token(text, type, logprob, row.advantage, colouring, scores ? scores.rows[index][place] : null))));
  show(
    title,
    h("p", {}, "Run ", runLink(query.name), " · ", h("a", { href: link("rollouts", { name: query.name, min_step: query.step, max_step: query.step }) }, "All rollouts of this step"), " · ",
      h("a", { href: link("rollouts", { name: query.name, problem: query.problem }) }, "This problem at all steps")),
    h("p", { class: "mono card" }, rows[0].question),
    h("div", { class: "bar" },
      field("Colour tokens by", select([...COLOURINGS].map(([key, [label]]) => [key, label]), colouring, (value) => change({ colour: value }))),
      scores && field("Checkpoint at step", select(scores.checkpoints.map((step) => [String(step), step]), String(scores.checkpoint), (value) => change({ checkpoint: value })))),
    h("div", { class: "legend" }, legend(colouring)),
    history.length > 1 && h("p", { class: "soft" }, "Mean reward of this problem: ",
      history.map((one, index) => [index ? ", " : "", h("a", { href: link("group", { ...query, step: one.step }) }, `step ${one.step}`), ` ${formatNumber(one.mean_reward, 2)}`])),
    h("div", { class: "samples" }, rows.map(sample)),
  );
}

function token(text, type, logprob, advantage, colouring, scores) {
  const [checkpointLogprob, entropy] = scores ?? [null, null];
  const sampled = type === "thought" || type === "answer"; // by the policy, so that it is trained on
  const [amount, colour] = {
    kind: [0, ""],
    surprise: [-(logprob ?? 0) / 3, "var(--context)"],
    checkpoint_surprise: [-(checkpointLogprob ?? 0) / 3, "var(--context)"],
    entropy: [(entropy ?? 0) / 2, "var(--context)"],
    advantage: [Math.abs(advantage ?? 0), (advantage ?? 0) > 0 ? "var(--success)" : "var(--danger)"],
  }[colouring];
  const [typeClass, typeName] = TOKEN_TYPES.get(type) ?? ["", type];
  const values = [typeName, logprob != null && `log p ${logprob.toFixed(3)}`,
    checkpointLogprob != null && `log p under the checkpoint ${checkpointLogprob.toFixed(3)}`, entropy != null && `entropy ${entropy.toFixed(3)}`];
  return h("span", { class: `token ${colouring === "kind" || !sampled ? typeClass : ""}`, title: values.filter(Boolean).join(", "),
    style: amount && sampled ? `background: color-mix(in srgb, ${colour} ${Math.round(55 * Math.min(1, amount))}%, transparent)` : null }, text);
}

function legend(colouring) {
  const swatch = (colour, text) => h("span", {}, h("span", { class: "swatch", style: `background: ${colour}` }), text);
  const scale = (low, high) => [swatch("color-mix(in srgb, var(--context) 10%, transparent)", low), swatch("color-mix(in srgb, var(--context) 55%, transparent)", high)];
  if (colouring === "surprise" || colouring === "checkpoint_surprise") return scale("low", "-log p of 3 or more");
  if (colouring === "entropy") return scale("low", "entropy of 2 nats or more");
  if (colouring === "advantage") return [swatch("var(--success)", "positive: probability goes up"), swatch("var(--danger)", "negative: probability goes down")];
  return [swatch("var(--thinking)", "thinking"), swatch("var(--ink)", "answer"), swatch("var(--context)", "context or prefill, never trained on")];
}

// --- search trees

async function trees(show) {
  const query = Object.fromEntries(address().query);
  const found = await getJson("/api/trees", query);
  show(
    h("h1", {}, "Search trees of ", runLink(query.name)),
    h("div", { class: "bar" }, field("Step", select(found.steps.map((step) => [String(step), step]), query.step, (value) => go("trees", { name: query.name, step: value })))),
    table(head("Problem", "Solved", "#Thoughts", "#Tokens", "Ended"), found.rows.map((row, index) =>
      openingRow(() => go("tree", { name: query.name, step: query.step, row: index }),
        clip(row.question, row.question), h("td", { class: row.correct ? "success" : "danger" }, row.correct ? "yes" : "no"),
        cell(row.thoughts, true), cell(row.tokens.toLocaleString("en"), true), cell(row.stop_reason)))),
  );
}

async function singleTree(show) {
  const query = Object.fromEntries(address().query);
  const found = await getJson("/api/tree", query);
  show(
    h("h1", {}, `Step ${query.step}: `, found.question),
    h("p", {}, "Run ", runLink(query.name), " · ", h("a", { href: link("trees", { name: query.name, step: query.step }) }, "All search trees of this step"), ` · ${found.tokens.toLocaleString("en")} tokens, ${found.tree.length} thoughts; ${found.stop_reason} · `, h("b", { class: found.correct ? "success" : "danger" }, found.correct ? "solved" : "not solved")),
    h("div", { class: "card scroll" }, searchTree(found.tree)),
  );
}

// --- claims, differences of configs

const claimName = (claim) => (claim.scale && claim.scale !== "tiny" ? `${claim.claim}_${claim.scale}` : claim.claim);

async function claims(show) {
  const found = await getJson("/api/claims");
  const check = (one) => h("tr", {}, cell(one.kind), cell(one.text), cell(one.found), h("td", { class: one.holds ? "success" : "danger" }, one.kind === "reported" ? "" : one.holds ? "passes" : "fails"));
  show(h("h1", {}, "Claims"), found.length ? null : h("p", { class: "soft" }, "No results of claims here. `school board --claims docs/claims` shows them."),
    found.map((claim) => h("article", { class: "card" },
      h("h2", {}, claimName(claim), " ", h("span", { class: claim.verdict === "PASS" ? "success" : "danger" }, claim.verdict)),
      h("p", {}, claim.sentence, " ", h("span", { class: "soft" }, `(${claim.paper}; ${claim.seeds.length} seeds)`)), h("p", {}, "Rule: ", claim.rule),
      table(null, claim.checks.map(check)),
      h("p", {}, image(`/api/figure/${encodeURIComponent(claimName(claim))}.png`, `Figure of claim ${claimName(claim)}`)))));
}

async function difference(show) {
  const [oldRun, newRun] = address().query.getAll("name");
  const lines = await getJson("/api/config_diff", { old: oldRun, new: newRun });
  show(h("h1", {}, "Config difference"), h("p", {}, h("b", {}, nameOf(oldRun)), " -> ", h("b", {}, nameOf(newRun))), h("pre", { class: "card" }, lines.length ? lines.map((line) => line.trim()).join("\n") : "The configs are the same."));
}

// --- views

const VIEWS = new Map(Object.entries({ runs, run, rollouts, group, trees, tree: singleTree, claims, difference }));
const SECTIONS = [["runs", "Runs"], ["claims", "Claims"]];
class Superseded extends Error {}

async function draw(reload = false) {
  const number = ++viewNumber;
  clearTimeout(reloadTimer);
  const { view } = address();
  const section = view === "claims" ? "claims" : "runs";
  const show = (...children) => {
    if (number !== viewNumber) throw new Superseded();
    main.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== ""));
  };
  document.getElementById("views").replaceChildren(...SECTIONS.map(([name, label]) =>
    h("a", { href: link(name), "aria-current": name !== section ? null : name === view ? "page" : "true" }, label)));
  document.title = `${view === section ? "" : `${view} · `}${section} · schoolhouse · Board`;
  const drawAgain = () => { reloadTimer = setTimeout(() => draw(true), RELOAD); };
  try {
    const inProgress = await VIEWS.get(view)(show);
    if (inProgress && number === viewNumber) drawAgain();
  } catch (error) {
    if (number !== viewNumber) return;
    if (reload) drawAgain(); // the view stays as it was
    else show(h("h1", {}, "This view could not be loaded"), h("p", { class: "danger" }, error.message), h("p", {}, h("a", { href: link("runs") }, "All runs")));
  }
}

addEventListener("hashchange", () => { main.focus({ preventScroll: true }); scrollTo(0, 0); draw(); });
draw();
