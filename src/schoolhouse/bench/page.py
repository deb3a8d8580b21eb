"""Update the results and the figure in docs/performance.md from files that `school bench --json` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schoolhouse.bench.benchmark import THIS_PACKAGE
from schoolhouse.bench.profile import PARTS
from schoolhouse.runs.atomic_io import atomic_write, read_json
from schoolhouse.types import SchoolError

START, END = "<!-- measured: written by `school bench page` -->", "<!-- end of what was measured -->"
TARGETS = {  # (kind, peer): the least ratio of tokens/s
    ("sampler", "transformers"): 4.0,
    ("sampler", "vllm"): 1.5,
    ("grpo", "trl"): 4.0,
    ("learner", "trainer"): 2.0,
    ("pretrain", "nanochat"): 1.3,
}
MEMORY_TARGET = 0.5  # of TRL's, for a GRPO step
PROFILE = "profile.json"


def write_page(folder: Path, page: Path) -> None:
    """Replace the text between the two marks of `page` by the results in `folder`, and draw the figure."""
    results = [read_json(path) for path in sorted(folder.glob("*.json")) if path.name != PROFILE]
    if not results:
        raise SchoolError(
            f"{folder} has no results; first run `school bench KIND --against PEER --json {folder}/NAME.json`"
        )
    profile = read_json(folder / PROFILE) if (folder / PROFILE).exists() else None
    text = page.read_text()
    if START not in text or END not in text:
        raise SchoolError(
            f"{page} does not have the two marks for the results; add these lines to the page:\n{START}\n{END}"
        )
    figure = page.with_suffix("") / "figure.png"
    draw(results, profile, figure)
    before, _, rest = text.partition(START)
    after = END + rest.partition(END)[2]
    body = [
        START,
        "",
        "![Six plots: the speed compared with other libraries, the speed for several workloads, and the parts of the "
        f"time]({figure.parent.name}/figure.png)",
        "",
    ]
    atomic_write(page, before + "\n".join([*body, *_table(results), *_limits(results), "", after]))


def _table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| workload | against | model | vectors | schoolhouse, tokens/s | the other | ratio (each repeat) | target "
        "| memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: (r["kind"], r["peer"], r["work"]["size"], r["vectors"] == "AVX2")):
        own, other = (result["tokens_per_second"][name] for name in (THIS_PACKAGE, result["peer"]))
        ratios = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"])
        target = TARGETS.get((result["kind"], result["peer"]))
        memory = f"{result['peak_ratio']:.2f}x" + (f" (target {MEMORY_TARGET}x)" if result["peer"] == "trl" else "")
        rows = result["work"]["problems"] * result["work"]["samples"]
        size = f"{result['work']['size']}, {rows} rows" if result["kind"] != "pretrain" else "nanochat's"
        lines.append(
            f"| {result['kind']} | {result['peer']} ({result['peer_options']['dtype']}) | {size} | {result['vectors']} "
            f"| {own:,.0f} | {other:,.0f} | **{result['median_ratio']:.2f}** ({ratios}) | {target or ''} | {memory} |"
        )
    return lines


def _limits(results: Sequence[Mapping[str, Any]]) -> list[str]:
    low, high = (
        {key: pick(r["limits"][key] for r in results) / 1e9 for key in results[0]["limits"]} for pick in (min, max)
    )
    gaps = [one["logprob_gap"] for r in results if r["kind"] == "grpo" for one in r["repeats"][THIS_PACKAGE]]
    machine = results[0]["machine"]
    return [
        "",
        "The speed of the machine was measured right after each benchmark. "
        f"Matrix products reached {low['bfloat16']:.0f} to {high['bfloat16']:.0f} Gflop/s in bfloat16 and "
        f"{low['float32']:.0f} to {high['float32']:.0f} Gflop/s in float32. "
        f"Reading from memory reached {low['bandwidth']:.0f} to {high['bandwidth']:.0f} GB/s. "
        + (
            "In the GRPO benchmarks the mean gap between the log-probabilities of sampler and learner was at most "
            f"{max(gaps):.1e}."
            if gaps
            else ""
        ),
        "",
        f"The benchmarks used torch {machine['versions']['torch']} and transformers "
        f"{machine['versions']['transformers']} on {machine['cores']} CPU cores with "
        f"{', '.join(machine['processor'])}.",
    ]


def draw(results: Sequence[Mapping[str, Any]], profile: Mapping[str, Any] | None, path: Path) -> None:
    """Draw the speed ratios with their targets, the curves of sampled tokens/s, and the time of each part of a step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (2, 3) if profile else (1, 1)
    figure = Figure(figsize=(13, 7) if profile else (8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    names = [f"{r['kind']}, {r['peer']}\n{r['work']['size'].replace('nanochat', '')}, {r['vectors']}" for r in results]
    axes[0].bar(names, [r["median_ratio"] for r in results], color="#4477aa")
    for at, r in enumerate(results):
        axes[0].plot([at] * len(r["ratios"]), r["ratios"], ".", color="black", markersize=4)
        axes[0].plot([at - 0.4, at + 0.4], [TARGETS.get((r["kind"], r["peer"]), 1.0)] * 2, color="#cc3311")
    axes[0].set_title("tokens/s, times those of the other library (red: target)", fontsize=10)
    axes[0].tick_params(axis="x", labelsize=6, rotation=45)
    axes[0].set_yscale("log", base=2)
    axes[0].set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    if profile:
        for axis, (name, points) in zip(axes[1:5], profile["curves"].items(), strict=True):
            xs = [int(x) for x in points]
            axis.plot(xs, list(points.values()), "o-", color="#4477aa")
            axis.set_xscale("log", base=2)
            axis.set_xticks(xs, [str(x) for x in xs])
            axis.set_ylim(bottom=0)
            axis.set_title(f"sampled tokens/s by {name}", fontsize=10)
        _draw_breakdown(axes[5], profile["breakdown"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_breakdown(axis: Any, breakdown: Mapping[str, Mapping[str, float]]) -> None:
    labels = [name.replace(", ", "\n") for name in breakdown]
    bottom = [0.0] * len(breakdown)
    for part, color in zip(PARTS, ("#4477aa", "#66ccee", "#ccbb44", "#bbbbbb"), strict=True):
        shares = [spent[part] / sum(spent.values()) for spent in breakdown.values()]
        axis.bar(labels, shares, bottom=bottom, label=part, color=color)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    axis.legend(fontsize=7, loc="lower left")
    axis.set_title("where the time goes", fontsize=10)
