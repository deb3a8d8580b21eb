// The board: a view for each address behind the #. Every view is drawn from what the server reads in run folders.

import { duration, field, get, h, number, select, tree } from "./common.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const LIVE = 3000; // milliseconds between looks at runs that are going on
const FIRST = ["reward", "loss", "exam.overall.pass_at_1", "entropy", "said_right", "groups_mixed", "bits_per_byte"];
const COLOURS = ["#3b78c4", "#d2692b", "#2f9a62", "#b8479b", "#7a63c9", "#b58a00", "#4aa3b5", "#c9484a"];
let timer = 0;
let drawing = 0;

const here = () => {
  const [view, words] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: view || "runs", query: new URLSearchParams(words) };
};
const to = (view, query = {}) => {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one != null) words.append(name, one);
  }
  return `#/${view}?${words}`;
};
const cell = (text, numeric = false) => h("td", { class: numeric ? "num" : "" }, text);

// --- runs

async function runs(show) {
  const rows = await get("/api/runs");
  const chosen = new Set(here().query.getAll("name"));
  const compare = h("button", { disabled: true, onclick: () => (location.hash = to("run", { name: [...chosen] })) }, "side by side");
  const differ = h("button", { disabled: true, onclick: () => (location.hash = to("difference", { name: [...chosen] })) }, "difference of two configs");
  const count = () => { compare.disabled = chosen.size < 2; differ.disabled = chosen.size !== 2; };
  const body = rows.map((run) => h("tr", {},
    h("td", {}, h("input", { type: "checkbox", "aria-label": `choose ${run.name}`, checked: chosen.has(run.name),
      onchange: (event) => { event.target.checked ? chosen.add(run.name) : chosen.delete(run.name); count(); } })),
    h("td", {}, h("a", { href: to("run", { name: run.name }) }, run.name)),
    cell(run.recipe), h("td", {}, h("span", { class: `state ${run.state}` }, run.state)),
    cell(run.of ? `${run.done} of ${run.of}` : String(run.done), true), cell(duration(run.seconds), true), cell(run.result)));
  count();
  show(h("h1", {}, "runs"), h("div", { class: "bar" }, compare, differ),
    rows.length ? h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {},
      ["", "run", "recipe", "state"].map((name) => h("th", {}, name)), ["steps", "time"].map((name) => h("th", { class: "num" }, name)), h("th", {}, "result"))),
      h("tbody", {}, body))) : h("p", {}, "There is no run in this folder yet."));
  return rows.some((run) => run.state === "running");
}

// --- one run, or several side by side

async function run(show) {
  const { query } = here();
  const names = query.getAll("name");
  const infos = await Promise.all(names.map((name) => get("/api/run", { name })));
  const known = [...new Set(infos.flatMap((info) => info.metrics))];
  const usual = FIRST.filter((name) => known.includes(name)).slice(0, 4);
  const metrics = query.getAll("metric").length ? query.getAll("metric") : usual.length ? usual : known.slice(0, 4);
  const against = query.get("against") ?? "step";
  const smooth = +(query.get("smooth") ?? 0);
  const band = query.get("band") === "1";
  const change = (more) => (location.hash = to("run", { name: names, metric: metrics, against, smooth, band: band ? 1 : "", ...more }));
  const found = metrics.length ? await get("/api/curves", { name: names, metric: metrics, against }) : [];
  const one = infos.length === 1 ? infos[0] : null;
  const plots = h("div", { class: "plots" });
  show(
    h("h1", {}, names.join(", ")),
    one && h("p", {}, h("span", { class: `state ${one.state}` }, one.state), ` ${one.recipe}, ${one.of ? `${one.done} of ${one.of}` : one.done} steps, ${duration(one.seconds)} `,
      one.rollouts && h("a", { href: to("rollouts", { name: one.name }) }, "rollouts"),
      one.trees.length > 0 && [" · ", h("a", { href: to("trees", { name: one.name, step: one.trees.at(-1) }) }, "search trees")]),
    one?.advice.map((text) => h("p", { class: "note" }, text)),
    one?.signal && h("p", {}, one.signal),
    h("div", { class: "bar" },
      field("against", select([["step", "steps"], ["tokens", "tokens sampled"], ["seconds", "seconds"]], against, (value) => change({ against: value }))),
      field(`smoothing: ${smooth} steps`, h("input", { type: "range", min: 0, max: 50, value: smooth, onchange: (event) => change({ smooth: event.target.value }) })),
      names.length > 1 && field("seeds of one config", select([["", "a line each"], ["1", "mean and band"]], band ? "1" : "", (value) => change({ band: value })))),
    h("details", { open: false }, h("summary", {}, `numbers (${metrics.length} of ${known.length} shown)`), h("div", { class: "picks" }, known.map((name) => h("label", {},
      h("input", { type: "checkbox", checked: metrics.includes(name), onchange: (event) => change({ metric: event.target.checked ? [...metrics, name] : metrics.filter((other) => other !== name) }) }), " ", name)))),
    plots,
    one && [h("h2", {}, "config"), h("pre", { class: "card" }, JSON.stringify(one.config, null, 2)), h("h2", {}, "machine"), h("pre", { class: "card" }, JSON.stringify(one.machine, null, 2))],
  );
  for (const metric of metrics) plot(plots, metric, against, banded(found, metric, infos, band), smooth, (run, step) => {
    if (against === "step") location.hash = to("rollouts", { name: run, first: step, last: step });
  });
  return infos.some((info) => info.state === "running");
}

function smoothed(values, width) {
  if (!width) return values;
  return values.map((value, at) => {
    const near = values.slice(Math.max(0, at - width), at + 1).filter((other) => other != null);
    return value == null || !near.length ? null : near.reduce((sum, other) => sum + other, 0) / near.length;
  });
}

// A line's values at other places, between its own points; null before the first of them and behind the last.
export function between(line, places) {
  const known = line.x.map((x, at) => [x, line.y[at]]).filter(([, y]) => y != null);
  let next = 0;
  return places.map((place) => {
    while (next < known.length && known[next][0] < place) next += 1;
    if (next === known.length || (!next && known[0][0] > place)) return null;
    const [x, y] = known[next];
    if (x === place) return y;
    const [x0, y0] = known[next - 1];
    return y0 + ((y - y0) * (place - x0)) / (x - x0);
  });
}

// Lines as { name, x, y, low, high }: one for each run, or one for each config with the range of its seeds.
function banded(found, metric, infos, band) {
  const lines = found.map((curve) => ({ name: curve.name, run: curve.name, x: curve.x, y: curve.y[metric] }));
  if (!band) return lines;
  const alike = new Map();
  infos.forEach((info, at) => {
    const { seed, model, ...rest } = info.config;
    const key = JSON.stringify([info.recipe, rest]);
    alike.set(key, [...(alike.get(key) ?? []), lines[at]]);
  });
  return [...alike.values()].map((few) => {
    const reach = few.map(({ x }) => [x[0] ?? 0, x.at(-1) ?? 0]);  // as far as all have come
    const first = Math.max(...reach.map((ends) => ends[0])), last = Math.min(...reach.map((ends) => ends[1]));
    const places = [...new Set(few.flatMap((line) => line.x))].filter((x) => x >= first && x <= last).sort((a, b) => a - b);
    const values_ = few.map((line) => between(line, places));
    const at = places.map((_, i) => values_.map((values) => values[i]).filter((value) => value != null));
    return { name: few.length > 1 ? `${few[0].name} and ${few.length - 1} more` : few[0].name, run: few[0].run, x: places,
      y: at.map((values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null)),
      low: at.map((values) => (values.length ? Math.min(...values) : null)), high: at.map((values) => (values.length ? Math.max(...values) : null)) };
  });
}

function plot(place, metric, against, lines, smooth, pick) {
  const box = h("div", { class: "card plot" }, h("h3", {}, metric));
  place.append(box);
  const x = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const where = new Map(x.map((value, at) => [value, at]));
  const data = [x], series = [{ label: against }], bands = [];
  lines.forEach((line, number_) => {
    const colour = COLOURS[number_ % COLOURS.length];
    const spread = (values) => { const row = new Array(x.length).fill(undefined); line.x.forEach((value, at) => (row[where.get(value)] = values[at] ?? undefined)); return row; };
    data.push(spread(smoothed(line.y, smooth)));
    series.push({ label: line.name, stroke: colour, width: 1.5, spanGaps: true, value: (_, value) => number(value, 4) });
    if (line.low) {
      data.push(spread(line.high), spread(line.low));
      series.push({ label: "highest", stroke: colour, width: 0, spanGaps: true, points: { show: false } }, { label: "lowest", stroke: colour, width: 0, spanGaps: true, points: { show: false } });
      bands.push({ series: [data.length - 2, data.length - 1], fill: `${colour}33` });
    }
  });
  const ink = getComputedStyle(document.documentElement).getPropertyValue("color");
  const grid = { stroke: "rgba(128,128,128,.2)", width: 1 };
  const axis = { stroke: getComputedStyle(main).color || ink, grid, ticks: grid, font: "11px system-ui" };
  const chart = new uPlot({ width: Math.max(260, box.clientWidth - 34), height: 230, series, bands, scales: { x: { time: false } }, legend: { live: true },
    axes: [{ ...axis, values: (_, ticks) => ticks.map((tick) => (tick >= 1e6 ? `${tick / 1e6}M` : tick >= 1e4 ? `${tick / 1e3}k` : tick)) }, { ...axis, size: 55, values: (_, ticks) => ticks.map((tick) => (tick && Math.abs(tick) < 1e-3 ? tick.toExponential(0) : number(tick, 4))) }],
    cursor: { drag: { x: true, y: false } } }, data, box);
  chart.over.title = against === "step" ? "click: the samples of this step" : "";
  let down = 0;
  chart.over.addEventListener("mousedown", (event) => (down = event.clientX));
  chart.over.addEventListener("click", (event) => {
    const at = chart.cursor.idx;
    if (at == null || Math.abs(event.clientX - down) >= 3) return;
    const far = (line) => { const y = line.y[line.x.indexOf(x[at])]; return y == null ? Infinity : Math.abs(chart.valToPos(y, "y") - chart.cursor.top); };
    pick(lines.reduce((a, b) => (far(b) < far(a) ? b : a)).run, x[at]);
  });
}

// --- rollouts

async function rollouts(show) {
  const { query } = here();
  const asked = Object.fromEntries(query);
  const change = (more) => (location.hash = to("rollouts", { ...asked, page: "", ...more }));
  const began = performance.now();
  const found = await get("/api/rollouts", asked);
  const pages = Math.max(1, Math.ceil(found.count / found.per_page));
  const enter = (name, type = "number", label = name) => field(label, h("input", { type, step: "any", value: asked[name] ?? "", onchange: (event) => change({ [name]: event.target.value }) }));
  const turn = (by, text) => h("button", { disabled: found.page + by < 0 || found.page + by >= pages, onclick: () => change({ page: found.page + by }) }, text);
  const open = (row) => (location.hash = to("group", { name: asked.name, step: row.step, problem: row.problem }));
  show(
    h("h1", {}, "rollouts of ", h("a", { href: to("run", { name: asked.name }) }, asked.name)),
    h("div", { class: "bar" },
      enter("first", "number", "from step"), enter("last", "number", "to step"), enter("problem", "text", "problem holds"),
      field("verdict", select([["", "all"], ["right", "right"], ["wrong", "wrong"], ["unjudged", "could not be judged"]], asked.verdict ?? "", (value) => change({ verdict: value }))),
      field("ended by", select([["", "all"], ["stop", "itself"], ["length", "cut off"]], asked.finish ?? "", (value) => change({ finish: value }))),
      enter("least", "number", "score from"), enter("most", "number", "score to"),
      field("sorted by", select([["step", "step"], ["score", "score"], ["said", "length"], ["spread", "disagreement"]], asked.order ?? "step", (value) => change({ order: value }))),
      field("", select([["true", "down"], ["false", "up"]], asked.down ?? "true", (value) => change({ down: value })))),
    h("p", { class: "soft", id: "count" }, `${found.count.toLocaleString("en")} rollouts`, found.ready ? "" : ", the index is still being made"),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { class: "num" }, "step"), h("th", {}, "problem"), h("th", { class: "num" }, "score"), h("th", { class: "num" }, "group"), h("th", {}, "thought"), h("th", {}, "answer"), h("th", {}, "ended"))),
      h("tbody", {}, found.rows.map((row) => h("tr", { class: "go", tabindex: 0, onclick: () => open(row), onkeydown: (event) => event.key === "Enter" && open(row) },
        cell(row.step, true), h("td", {}, h("div", { class: "clip", title: row.problem }, row.question || row.problem)),
        h("td", { class: `num ${row.score == null ? "" : row.score >= 1 ? "right" : "wrong"}`, title: row.reason }, number(row.score)), cell(number(row.mean, 2), true),
        h("td", {}, h("div", { class: "clip" }, row.thought ?? "")), h("td", {}, h("div", { class: "clip" }, row.answer ?? "")), cell(row.finish)))))),
    h("div", { class: "bar" }, turn(-1, "back"), h("span", {}, `page ${(found.page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`), turn(1, "on")),
  );
  main.dataset.took = Math.round(performance.now() - began);
  return !found.ready;
}

// --- the samples of one problem, token by token

async function group(show) {
  const { query } = here();
  const asked = Object.fromEntries(query);
  const found = await get("/api/group", asked);
  if (!found.rows.length) {
    show(h("h1", {}, `step ${asked.step}: `, asked.problem), h("p", { class: "soft" }, "the index of this run is still being made"));
    return true;
  }
  const colour = asked.colour ?? "kind";
  const rows = found.rows;
  const weighed = WEIGHED.includes(colour) && (await get("/api/weights", { name: asked.name, step: asked.step, problem: asked.problem, ...(asked.checkpoint && { checkpoint: asked.checkpoint }) }));
  const recolour = (change) => (location.hash = to("group", { ...asked, ...change }));
  show(
    h("h1", {}, `step ${asked.step}: `, asked.problem),
    h("p", {}, h("a", { href: to("rollouts", { name: asked.name, first: asked.step, last: asked.step }) }, "all of this step"), " · ", h("a", { href: to("rollouts", { name: asked.name, problem: asked.problem }) }, "this problem in all steps")),
    h("p", { class: "said card" }, rows[0].question),
    h("div", { class: "bar" }, field("tokens coloured by", select([["kind", "what they are"], ["surprise", "how unlikely they were"], ["advantage", "advantage"], ["entropy", "entropy of a kept model"], ["now", "how unlikely to a kept model"]], colour, (value) => recolour({ colour: value }))),
      weighed && field("kept at step", select(weighed.checkpoints.map((step) => [String(step), step]), String(weighed.checkpoint), (value) => recolour({ checkpoint: value })))),
    h("div", { class: "legend" }, legend(colour)),
    found.across.length > 1 && h("p", { class: "soft" }, "asked in ", found.across.map((one) => h("a", { href: to("group", { ...asked, step: one.step }) }, `step ${one.step} (${number(one.mean, 2)}) `))),
    h("div", { class: "samples" }, rows.map((row, at) => h("article", { class: "card" },
      h("p", {}, h("b", { class: row.score == null ? "" : row.score >= 1 ? "right" : "wrong" }, `score ${number(row.score)}`), ` · advantage ${row.advantage == null ? "–" : (row.advantage > 0 ? "+" : "") + number(row.advantage, 2)} · ${row.finish === "length" ? "cut off" : row.finish}`, row.reason && h("span", { class: "soft" }, ` · ${row.reason}`)),
      h("div", { class: "said" }, row.pieces.map(([text, kind, logprob], place) => kind !== "prompt" && token(text, kind, logprob, row.advantage, colour, weighed && weighed.rows[at][place])))))),
  );
}

const WEIGHED = ["entropy", "now"];

function token(text, kind, logprob, advantage, colour, weight) {
  const [now, entropy] = weight || [null, null];
  const [size, hue] = {
    surprise: [-(logprob ?? 0) / 3, "var(--given)"],
    now: [-(now ?? 0) / 3, "var(--given)"],
    entropy: [(entropy ?? 0) / 2, "var(--given)"],
    advantage: [Math.abs(advantage ?? 0), (advantage ?? 0) > 0 ? "var(--right)" : "var(--wrong)"],
  }[colour] ?? [0, ""];
  const trained = kind === "thought" || kind === "answer";
  const told = [kind, logprob != null && `log-probability ${logprob.toFixed(3)}`, now != null && `to the kept model ${now.toFixed(3)}`, entropy != null && `entropy ${entropy.toFixed(3)}`];
  return h("span", { class: `tok ${colour === "kind" || !trained ? kind : ""}`, title: told.filter(Boolean).join(", "),
    style: size && trained ? `background: color-mix(in srgb, ${hue} ${Math.round(55 * Math.min(1, size))}%, transparent)` : null }, text);
}

function legend(colour) {
  const swatch = (value, text) => h("span", {}, h("span", { class: "swatch", style: `background: ${value}` }), text);
  const shades = (little, much) => [swatch("color-mix(in srgb, var(--given) 10%, transparent)", little), swatch("color-mix(in srgb, var(--given) 55%, transparent)", much)];
  if (colour === "surprise" || colour === "now") return shades("expected", "log-probability -3 and less");
  if (colour === "entropy") return shades("decided", "entropy of 2 nats and more");
  if (colour === "advantage") return [swatch("var(--right)", "made likelier"), swatch("var(--wrong)", "made less likely")];
  return [swatch("var(--thought)", "thought"), swatch("var(--ink)", "answer"), swatch("var(--given)", "given by others, never trained on")];
}

// --- search trees

async function trees(show) {
  const asked = Object.fromEntries(here().query);
  const found = await get("/api/trees", asked);
  const open = (row) => (location.hash = to("tree", { name: asked.name, step: asked.step, row }));
  show(
    h("h1", {}, "search trees of ", h("a", { href: to("run", { name: asked.name }) }, asked.name)),
    h("div", { class: "bar" }, field("step", select(found.steps.map((step) => [String(step), step]), asked.step, (value) => (location.hash = to("trees", { name: asked.name, step: value }))))),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "problem"), h("th", {}, "solved"), h("th", { class: "num" }, "thoughts"), h("th", { class: "num" }, "tokens"), h("th", {}, "ended"))),
      h("tbody", {}, found.rows.map((row, at) => h("tr", { class: "go", tabindex: 0, onclick: () => open(at), onkeydown: (event) => event.key === "Enter" && open(at) },
        h("td", {}, h("div", { class: "clip", title: row.question }, row.question)), h("td", { class: row.right ? "right" : "wrong" }, row.right ? "yes" : "no"),
        cell(row.thoughts, true), cell(row.tokens.toLocaleString("en"), true), cell(row.end)))))),
  );
}

async function oneTree(show) {
  const asked = Object.fromEntries(here().query);
  const found = await get("/api/tree", asked);
  show(
    h("h1", {}, `step ${asked.step}: `, found.question),
    h("p", {}, h("a", { href: to("trees", { name: asked.name, step: asked.step }) }, "all trees of this step"), ` · ${found.tokens.toLocaleString("en")} tokens, ${found.tree.length} thoughts; ${found.end} · `, h("b", { class: found.right ? "right" : "wrong" }, found.right ? "solved" : "not solved")),
    h("div", { class: "card scroll" }, tree(found.tree)),
  );
}

// --- claims, differences

const title = (claim) => claim.scale && claim.scale !== "tiny" ? `${claim.claim}_${claim.scale}` : claim.claim;

async function claims(show) {
  const found = await get("/api/claims");
  show(h("h1", {}, "claims"), found.length ? null : h("p", {}, "No results of claims here: start the board with --claims docs/claims."),
    found.map((claim) => h("article", { class: "card" }, h("h2", {}, title(claim), " ", h("span", { class: claim.verdict === "PASS" ? "right" : "wrong" }, claim.verdict)),
      h("p", {}, claim.sentence, " ", h("span", { class: "soft" }, `(${claim.paper}; ${claim.seeds.length} seeds)`)), h("p", {}, "Rule: ", claim.rule),
      h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, claim.checks.map((check) => h("tr", {}, cell(check.kind), cell(check.text), cell(check.found), h("td", { class: check.holds ? "right" : "wrong" }, check.kind === "reported" ? "" : check.holds ? "holds" : "does not hold")))))),
      h("p", {}, h("img", { src: `/api/figure/${encodeURIComponent(title(claim))}.png`, alt: `figure of claim ${title(claim)}`, loading: "lazy" })))));
}

async function difference(show) {
  const [one, other] = here().query.getAll("name");
  const lines = await get("/api/difference", { one, other });
  show(h("h1", {}, "difference"), h("p", {}, "there: ", one, "; now: ", other), h("pre", { class: "card" }, lines.length ? lines.join("\n") : "the same config"));
}

// --- which view

const VIEWS = { runs, run, rollouts, group, trees, tree: oneTree, claims, difference };

async function draw(quiet = false) {
  const mine = ++drawing;
  clearTimeout(timer);
  const { view } = here();
  // A view that was asked for earlier may have its answer later: it must not be drawn over the one that is looked at.
  const show = (...children) => {
    if (mine !== drawing) throw new Error("another view is being looked at");
    main.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== ""));
  };
  nav.replaceChildren(...["runs", "claims"].map((name) => h("a", { href: to(name), "aria-current": name === view ? "page" : null }, name)));
  document.title = `${view} · schoolhouse board`;
  try {
    const live = await (VIEWS[view] ?? runs)(show);
    if (live && mine === drawing) timer = setTimeout(() => draw(true), LIVE);
  } catch (error) {
    if (mine !== drawing) return;
    if (quiet) timer = setTimeout(() => draw(true), LIVE);
    else show(h("h1", {}, "this cannot be shown"), h("p", { class: "wrong" }, error.message), h("p", {}, h("a", { href: to("runs") }, "all runs")));
  }
}

addEventListener("hashchange", () => { main.focus({ preventScroll: true }); scrollTo(0, 0); draw(); });
draw();
