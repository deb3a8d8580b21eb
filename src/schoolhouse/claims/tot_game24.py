"""A small model that looks around and back solves puzzles that it cannot solve by talking on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Json, Results, Scale, Step, told
from schoolhouse.claims.harness.models import only_tiny
from schoolhouse.eval.evaluate import evaluate
from schoolhouse.policy.policy import Policy
from schoolhouse.search.solve import SearchGenerator, parse
from schoolhouse.tasks.game24 import Game24, moves, reaches
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, SchoolError

PAPER = 0.74
"""What GPT-4 reaches at breadth 5 (Yao et al. 2023, table 2)."""

TREE = "tot?thoughts=propose&samples=32&lists=3&listed=560&length=64&temperature=0.7"
SEARCHES: Mapping[str, str] = {
    "greedy": "sample?length=128&temperature=0",
    "vote": "vote?samples=230&length=128&temperature=0.7",
    "breadth_1": f"{TREE}&breadth=1",
    "breadth_5": f"{TREE}&breadth=5",
    "random": f"{TREE}&breadth=5&values=random",
    "exact": f"{TREE}&breadth=5&values=exact",
}


class Searched(Evaluation):
    """An exam sat by a search: `solved`, and `tokens` a problem, those of its lists and values included."""

    search: str

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        task = open_task(self.task, seed)
        searcher = SearchGenerator(policy, task, parse(self.search, inf))
        sat = evaluate(searcher, task, self.problems, 1, self.max_new_tokens, seed=seed)
        tokens = fmean(found.tokens for found in searcher.results)
        return {"overall": {"solved": sat.overall["pass_at_1"].value, "tokens": tokens}}


class Positions(Evaluation):
    """What the solver says, the likeliest, of every three numbers that the exam's puzzles lead to: how many of those
    that reach 24 it calls `sure`, and of those that do not `impossible`. Apart for numbers that puzzles of practice
    lead to as well (`met`, and their share), which lessons may have shown, and for the others (`new`)."""

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        task, say = open_task(self.task, seed), policy.conversation
        assert isinstance(task, Game24)
        met = {move.left for left in task.practice for move in moves(left)}
        asked = sorted({move.left for left in task.held_out for move in moves(left)})
        about = [task.value_prompt(replace(task.eval_problems(1)[0], info={"left": left}), []) for left in asked]
        prefixes = [say.prompt_rollout(one, Key(seed, "positions", 0, at)) for at, one in enumerate(about) if one]
        said = policy.extend(prefixes, self.max_new_tokens, temperature=0.0)
        words = [say.parse_completion(rollout).answer.strip() for rollout in said]
        overall = {}
        for name, truth in (("sure", True), ("impossible", False)):
            mine = [
                (left in met, word == name) for left, word in zip(asked, words, strict=True) if reaches(left) == truth
            ]
            overall[f"share_{name}"] = _mean([known for known, _ in mine])
            overall[f"{name}_met"] = _mean([right for known, right in mine if known])
            overall[f"{name}_new"] = _mean([right for known, right in mine if not known])
        return {"overall": overall}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def puzzles() -> Path:
    """The file of puzzles, which is not part of the package."""
    path = Path(os.environ.get("SCHOOLHOUSE_GAME24", "../shared/data/game24.csv"))
    if not path.exists():
        raise SchoolError(
            f"this claim needs the puzzles of Tree of Thoughts, and {path} is not there: set SCHOOLHOUSE_GAME24 to "
            "their file (24.csv of princeton-nlp/tree-of-thought-llm)"
        )
    return path


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    task = f"game24:{puzzles()}"
    shape = {
        "hidden_size": 192,
        "num_layers": 4,
        "num_heads": 6,
        "num_kv_heads": 6,
        "head_dim": 32,
        "intermediate_size": 576,
        "max_seq_len": 768,
    }
    text = {
        "task": task,
        "seed": seed,
        "model": shape,
        "vocab_size": 320,
        "steps": 300,
        "optimizer.learning_rate": 2e-3,
    }
    taught = {"task": f"{task}?demos=solve=4,next=2,value=8", "seed": seed, "batch_size": 96, "steps": 2400}
    solver = Step(
        "sft", {"model": Step("pretrain", text), **taught, "optimizer.learning_rate": 2e-3, "save_every": 500}
    )
    asked = {
        name: Searched(task=task, problems=100, samples=1, max_new_tokens=128, search=search)
        for name, search in SEARCHES.items()
    }
    positions = {"positions": Positions(task=task, max_new_tokens=16)}
    return {
        "solver": Arm(
            solver, {**asked, **positions}, "taught whole solutions, next moves and values by an exact solver"
        )
    }


def judge(results: Results) -> Sequence[Check]:
    def each(search: str, metric: str = "solved") -> list[float]:
        return results.each("solver", metric, search)

    means = {search: fmean(each(search)) for search in SEARCHES}
    ranked = means["breadth_5"] > means["breadth_1"] > means["vote"] > means["greedy"]
    pair = [fmean(each(search, "tokens")) for search in ("vote", "breadth_5")]
    shown = ", ".join(f"{search} {means[search]:.3f}" for search in ("breadth_5", "breadth_1", "vote", "greedy"))
    return [
        Check(
            "premise",
            "the vote spends at least the tokens of breadth 5, mean of seeds",
            f"{pair[0]:,.0f} against {pair[1]:,.0f}",
            pair[0] >= pair[1],
        ),
        Check("must hold", "breadth 5 > breadth 1 > vote > greedy, mean of seeds", shown, ranked),
        Check(
            "must hold",
            f"breadth 5 solves {PAPER} or more, each seed",
            told(each("breadth_5")),
            min(each("breadth_5")) >= PAPER,
        ),
        Check(
            "must hold", "with exact values all are solved, each seed", told(each("exact")), min(each("exact")) >= 1.0
        ),
        Check(
            "must fail",
            "random values: at most .05 above the vote, mean of seeds",
            f"{means['random']:.3f} against {means['vote']:.3f}",
            means["random"] <= means["vote"] + 0.05,
        ),
        *(
            Check(
                "reported",
                f"three numbers that an exam puzzle leaves and that {'reach' if word == 'sure' else 'miss'} 24: the "
                f"share that practice leaves too; called {word} of those, and of the others",
                "; ".join(told(results.each("solver", m, "positions"), 2) for m in (f"share_{word}", *known)),
                True,
            )
            for word, known in ((word, (f"{word}_met", f"{word}_new")) for word in ("sure", "impossible"))
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for at, search in enumerate(SEARCHES):
        values = results.each("solver", "solved", search)
        left.bar(search, fmean(values), color="0.8")
        left.plot([at] * len(values), values, "k.")
        right.plot(results.each("solver", "tokens", search), values, "o", label=search)
    left.axhline(PAPER, color="k", linestyle="--", linewidth=1)
    left.set(ylabel="puzzles solved", ylim=(0, 1.02))
    left.tick_params(axis="x", rotation=45)
    right.set(xscale="log", xlabel="tokens a puzzle", ylabel="puzzles solved", ylim=(0, 1.02))
    right.legend(fontsize=8)


CLAIM = Claim(
    id="tot_game24",
    paper="Yao et al. 2023, arXiv 2305.10601, section 4.1",
    sentence="Looking at several next moves, judging them and going on from the best solves what talking on does not",
    budget="one model; every puzzle of ranks 901 to 1,000; the vote spends at least the tokens of breadth 5",
    premise="the vote has no fewer tokens than the tree",
    rule=f"breadth 5 > breadth 1 > vote > greedy in the mean of seeds, breadth 5 solves {PAPER} in each; all with "
    "exact values; random values bring no more than .05 above the vote",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "A list of proposals names all that may be done (at most 30 moves), where the paper's prompt asks for a few: a "
        "small model learns to enumerate before it learns what helps, and values choose. With lists of the eight best "
        "moves exact values solved .92 (docs/lab.md). Pilots with seed 0 fixed the lessons, and three lists a "
        "position: two missed every good first move of one puzzle.",
        "",
        "Found after the count: the puzzle that exact values miss is 1 5 6 7 with seed 1. That model lists none of the "
        "first moves that lead on; with five lists instead of three it misses it too.",
        "",
        "Held out are the puzzles, four numbers each. The three that are left after a move may follow from puzzles of "
        "practice too, most of those that reach 24 do, and lessons ask about them: the last two lines tell both apart. "
        "Every search asks the same model, so what it has met helps them all alike.",
        "",
        "A vote counts expressions by their words, so two orders of one sum are two ballots; best of N by the model's "
        "own values was not run.",
    ),
)
