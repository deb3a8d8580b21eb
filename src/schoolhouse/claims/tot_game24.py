"""Tree of Thoughts: with a tree search, a small model solves puzzles that one chain of thought does not solve."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Json, Results, Scale, Step, format_values
from schoolhouse.claims.harness.models import require_tiny
from schoolhouse.eval.evaluate import evaluate
from schoolhouse.policy.policy import Policy
from schoolhouse.search.solve import SearchGenerator, parse
from schoolhouse.tasks.game24 import Game24, can_make_target, next_moves
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, SchoolError

PAPER_ACCURACY = 0.74
"""The accuracy of GPT-4 with beam width 5 (Yao et al. 2023, table 2)."""
MAX_CONTROL_GAIN = 0.05

TREE = "tot?thoughts=propose&samples=32&num_proposals=3&proposal_tokens=560&max_new_tokens=64&temperature=0.7"
SEARCHES: Mapping[str, str] = {
    "greedy": "sample?max_new_tokens=128&temperature=0",
    "vote": "vote?samples=230&max_new_tokens=128&temperature=0.7",
    "breadth_1": f"{TREE}&beam_width=1",
    "breadth_5": f"{TREE}&beam_width=5",
    "random": f"{TREE}&beam_width=5&values=random",
    "exact": f"{TREE}&beam_width=5&values=exact",
}


class SearchEvaluation(Evaluation):
    """The accuracy of a search (`solved`), and its `tokens` per problem, including tokens of proposals and values."""

    search: str

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        task = open_task(self.task, seed)
        generator = SearchGenerator(policy, task, parse(self.search))
        result = evaluate(generator, task, self.problems, 1, self.max_new_tokens, seed=seed)
        tokens = fmean(found.tokens for found in generator.results)
        return {"overall": {"solved": result.overall["pass_at_1"].value, "tokens": tokens}}


class ValuePredictions(Evaluation):
    """How well the solver judges the sets of three numbers that remain after one move in an evaluation puzzle.

    The solver's answer is the value to which it gives the highest probability.

    sure_seen, sure_unseen              the share of sets that the solver calls `sure`, among sets that make 24.
    impossible_seen, impossible_unseen  the share that the solver calls `impossible`, among sets that do not make 24.
    share_sure, share_impossible        the share of seen sets among sets that make 24, and among all other sets.

    A set of numbers is `seen` if a move in a training puzzle also leaves this set. Demonstrations can contain the value
    of a seen set.
    """

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        task, conversation = open_task(self.task, seed), policy.conversation
        assert isinstance(task, Game24)
        seen = {move.left for puzzle in task.train_puzzles for move in next_moves(puzzle)}
        numbers = sorted({move.left for puzzle in task.eval_puzzles for move in next_moves(puzzle)})
        first = task.eval_problems(1)[0]
        problems = [task.value_prompt(replace(first, info={"left": left}), []) for left in numbers]
        prompts = [
            conversation.prompt_rollout(problem, Key(seed, "positions", 0, at))
            for at, problem in enumerate(problems)
            if problem
        ]
        rollouts = policy.extend(prompts, self.max_new_tokens, temperature=0.0)
        values = [conversation.parse_completion(rollout).answer.strip() for rollout in rollouts]
        overall = {}
        for value, makes_target in (("sure", True), ("impossible", False)):
            predictions = [
                (left in seen, predicted == value)
                for left, predicted in zip(numbers, values, strict=True)
                if can_make_target(left) == makes_target
            ]
            overall[f"share_{value}"] = _mean([is_seen for is_seen, _ in predictions])
            overall[f"{value}_seen"] = _mean([correct for is_seen, correct in predictions if is_seen])
            overall[f"{value}_unseen"] = _mean([correct for is_seen, correct in predictions if not is_seen])
        return {"overall": overall}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def puzzle_file() -> Path:
    """The file of puzzles, which is not part of the package. Raises SchoolError if the file does not exist."""
    path = Path(os.environ.get("SCHOOLHOUSE_GAME24", "../shared/data/game24.csv"))
    if not path.exists():
        raise SchoolError(
            f"the puzzle file of Tree of Thoughts does not exist: {path}; download 24.csv of "
            "princeton-nlp/tree-of-thought-llm and set SCHOOLHOUSE_GAME24 to its path"
        )
    return path


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    task = f"game24:{puzzle_file()}"
    model = {
        "hidden_size": 192,
        "num_layers": 4,
        "num_heads": 6,
        "num_kv_heads": 6,
        "head_dim": 32,
        "intermediate_size": 576,
        "max_seq_len": 768,
    }
    common = {"seed": seed, "optimizer.learning_rate": 2e-3}
    pretrained = Step("pretrain", {**common, "task": task, "model": model, "vocab_size": 320, "steps": 300})
    demos = {"task": f"{task}?demos=solve=4,next=2,value=8", "batch_size": 96}
    solver = Step("sft", {**common, **demos, "model": pretrained, "steps": 2400, "save_every": 500})
    searches = {
        name: SearchEvaluation(task=task, problems=100, samples=1, max_new_tokens=128, search=search)
        for name, search in SEARCHES.items()
    }
    measures = {**searches, "values": ValuePredictions(task=task, max_new_tokens=16)}
    return {
        "solver": Arm(solver, measures, "fine-tuned on whole solutions, next moves and values from an exact solver")
    }


def check(results: Results) -> Sequence[Check]:
    def by_seed(search: str, metric: str = "solved") -> list[float]:
        return results.by_seed("solver", metric, search)

    means = {search: fmean(by_seed(search)) for search in SEARCHES}
    ranking = ("breadth_5", "breadth_1", "vote", "greedy")
    vote_tokens, tree_tokens = (fmean(by_seed(search, "tokens")) for search in ("vote", "breadth_5"))
    checks = [
        Check(
            "premise",
            "the vote spends at least as many tokens as breadth 5, in the mean of seeds",
            f"vote {vote_tokens:,.0f}, breadth 5 {tree_tokens:,.0f}",
            vote_tokens >= tree_tokens,
        ),
        Check(
            "must hold",
            "the share of solved puzzles falls in this order: breadth 5 (beam width of the tree search), breadth "
            "1, vote, greedy; mean of seeds",
            "solved: " + ", ".join(f"{search} {means[search]:.3f}" for search in ranking),
            means["breadth_5"] > means["breadth_1"] > means["vote"] > means["greedy"],
        ),
        Check(
            "must hold",
            f"the search with breadth 5 solves {PAPER_ACCURACY} or more of the puzzles in each seed",
            format_values(by_seed("breadth_5")),
            min(by_seed("breadth_5")) >= PAPER_ACCURACY,
        ),
        Check(
            "must hold",
            "with exact values, the search solves all puzzles in each seed",
            format_values(by_seed("exact")),
            min(by_seed("exact")) >= 1.0,
        ),
        Check(
            "must fail",
            f"with random values, the share of solved puzzles is at most {MAX_CONTROL_GAIN} above the vote, in the "
            "mean of seeds",
            f"random {means['random']:.3f}, vote {means['vote']:.3f}",
            means["random"] <= means["vote"] + MAX_CONTROL_GAIN,
        ),
    ]
    for value, verb in (("sure", "make"), ("impossible", "do not make")):
        shown = {"seen": f"share_{value}", "right if seen": f"{value}_seen", "right if unseen": f"{value}_unseen"}
        checks.append(
            Check(
                "reported",
                f"sets of three numbers that {verb} 24, after one move in an evaluation puzzle: the share seen in "
                f"training, and the share that the model calls `{value}`, for seen and for unseen sets",
                "; ".join(f"{name} {format_values(by_seed('values', metric), 2)}" for name, metric in shown.items()),
                True,
            )
        )
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    for at, search in enumerate(SEARCHES):
        values = results.by_seed("solver", "solved", search)
        left.bar(search, fmean(values), color="0.8")
        left.plot([at] * len(values), values, "k.")
        right.plot(results.by_seed("solver", "tokens", search), values, "o", label=search)
    left.axhline(PAPER_ACCURACY, color="k", linestyle="--", linewidth=1)
    left.set(ylabel="puzzles solved", ylim=(0, 1.02))
    left.tick_params(axis="x", rotation=45)
    right.set(xscale="log", xlabel="tokens for a puzzle", ylabel="puzzles solved", ylim=(0, 1.02))
    right.legend(fontsize=8)


CLAIM = Claim(
    id="tot_game24",
    paper="Yao et al. 2023, arXiv 2305.10601, section 4.1",
    sentence="A search that evaluates several next moves and continues from the best ones solves puzzles that one "
    "chain of thought does not solve",
    budget="all searches use the same model and the puzzles of ranks 901 to 1,000. The vote spends at least as "
    "many tokens as the tree search with breadth 5.",
    premise="the vote spends at least as many tokens as the tree search",
    rule="in the mean of seeds, the tree search with breadth 5 (its beam width) solves the largest share of "
    "puzzles, followed by the tree search with breadth 1, the vote, and greedy decoding. The tree search with "
    f"breadth 5 solves at least {PAPER_ACCURACY} of the puzzles in each seed. With exact values of the positions, "
    "the tree search solves all puzzles. With random values of the positions, the share of solved puzzles is at "
    "most .05 above the share that the vote solves.",
    arms=arms,
    check=check,
    draw=draw,
    failures=(
        "With exact values of the positions, the search does not solve one puzzle in seed 1: the puzzle 1 5 6 7 "
        "(the numbers of the puzzle were found after the official run). The model of seed 1 never proposes any "
        "of the first moves that lead to a solution of the puzzle 1 5 6 7. With five sampled lists of proposed "
        "moves instead of three, the search with exact values still does not solve the puzzle 1 5 6 7.",
    ),
    notes=(
        "In this claim, a list of proposals names all moves (at most 30), but the paper's prompt asks for a few "
        "moves. A small model learns to list all moves before it learns which moves help. The search uses the "
        "values of the next positions to select moves. With lists of the eight best moves, the search with exact "
        "values solved .92 of the puzzles (docs/lab.md). Pilots with seed 0 were used to choose the "
        "demonstrations and the number of lists for each position (three). With two lists, the model never "
        "proposed a good first move for one of the puzzles.",
        "",
        "The held-out problems are puzzles of four numbers. The three numbers that remain after a move can also "
        "occur in training puzzles. Most sets of three remaining numbers that make 24 do occur in training "
        "puzzles, and demonstrations show the values of these sets. Therefore the last two rows of the table of "
        "checks give separate results for sets of numbers that occur in training puzzles and for all other sets. "
        "Every search uses the same model, so sets of numbers that occur in training help all searches equally.",
        "",
        "The vote compares expressions by their text, so two orders of the same sum are two different candidates. "
        "Best-of-N with the model's own values was not run.",
    ),
)
