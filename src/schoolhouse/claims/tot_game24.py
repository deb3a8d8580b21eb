"""Tree of Thoughts: with a tree search a small model solves puzzles that one chain of thought does not solve."""

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
"""GPT-4 with beam width 5 (Yao et al. 2023, table 2)."""
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
    """Accuracy of a search (`solved`), and its `tokens` for a problem, those of proposals and values included."""

    search: str

    def run(self, policy: Policy, seed: int, **judged_models: Policy) -> Json:
        task = open_task(self.task, seed)
        generator = SearchGenerator(policy, task, parse(self.search))
        result = evaluate(generator, task, self.problems, 1, self.max_new_tokens, seed=seed)
        tokens = fmean(found.tokens for found in generator.results)
        return {"overall": {"solved": result.overall["pass_at_1"].value, "tokens": tokens}}


class ValuePredictions(Evaluation):
    """The solver's most likely value of every three numbers that one move in an evaluation puzzle leaves.

    sure_seen, sure_unseen              of numbers that make 24: the share that it calls `sure`
    impossible_seen, impossible_unseen  of numbers that do not: the share that it calls `impossible`
    share_sure, share_impossible        the share of those numbers that are seen

    Numbers are `seen` where a move in a training puzzle leaves them too: demonstrations may have shown their value.
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
    """The file of puzzles, which is not part of the package. Raises SchoolError where it is missing."""
    path = Path(os.environ.get("SCHOOLHOUSE_GAME24", "../shared/data/game24.csv"))
    if not path.exists():
        raise SchoolError(
            f"the puzzles of Tree of Thoughts are missing: {path} is not there; set SCHOOLHOUSE_GAME24 to their file "
            "(24.csv of princeton-nlp/tree-of-thought-llm)"
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
    return {"solver": Arm(solver, measures, "fine-tuned on whole solutions, next moves and values of an exact solver")}


def check(results: Results) -> Sequence[Check]:
    def by_seed(search: str, metric: str = "solved") -> list[float]:
        return results.by_seed("solver", metric, search)

    means = {search: fmean(by_seed(search)) for search in SEARCHES}
    ranking = ("breadth_5", "breadth_1", "vote", "greedy")
    vote_tokens, tree_tokens = (fmean(by_seed(search, "tokens")) for search in ("vote", "breadth_5"))
    checks = [
        Check(
            "premise",
            "the vote spends at least the tokens of breadth 5, mean of seeds",
            f"{vote_tokens:,.0f} against {tree_tokens:,.0f}",
            vote_tokens >= tree_tokens,
        ),
        Check(
            "must hold",
            "breadth 5 > breadth 1 > vote > greedy, mean of seeds",
            ", ".join(f"{search} {means[search]:.3f}" for search in ranking),
            means["breadth_5"] > means["breadth_1"] > means["vote"] > means["greedy"],
        ),
        Check(
            "must hold",
            f"breadth 5 solves {PAPER_ACCURACY} or more, each seed",
            format_values(by_seed("breadth_5")),
            min(by_seed("breadth_5")) >= PAPER_ACCURACY,
        ),
        Check(
            "must hold",
            "with exact values all are solved, each seed",
            format_values(by_seed("exact")),
            min(by_seed("exact")) >= 1.0,
        ),
        Check(
            "must fail",
            f"random values: at most {MAX_CONTROL_GAIN} above the vote, mean of seeds",
            f"{means['random']:.3f} against {means['vote']:.3f}",
            means["random"] <= means["vote"] + MAX_CONTROL_GAIN,
        ),
    ]
    for value, verb in (("sure", "make"), ("impossible", "do not make")):
        shown = (f"share_{value}", f"{value}_seen", f"{value}_unseen")
        checks.append(
            Check(
                "reported",
                f"three numbers that a move in an evaluation puzzle leaves and that {verb} 24: the share that training "
                f"puzzles leave too; called {value} of those, and of the others",
                "; ".join(format_values(by_seed("values", metric), 2) for metric in shown),
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
    sentence="Evaluating several next moves and continuing from the best solves what one chain of thought does not",
    budget="one model; every puzzle of ranks 901 to 1,000; the vote spends at least the tokens of breadth 5",
    premise="the vote has no fewer tokens than the tree",
    rule=f"breadth 5 > breadth 1 > vote > greedy in the mean of seeds, breadth 5 solves {PAPER_ACCURACY} in each; all "
    "with exact values; random values gain no more than .05 above the vote",
    arms=arms,
    check=check,
    draw=draw,
    failures=(
        "With exact values one puzzle is missed: 1 5 6 7 with seed 1 (found after the count). That model proposes none "
        "of the first moves that lead to a solution. With five lists of proposals instead of three it misses it too.",
    ),
    notes=(
        "A list of proposals names all moves (at most 30), where the paper's prompt asks for a few: a small model "
        "learns to enumerate before it learns which moves help, and values select. With lists of the eight best moves "
        "exact values solved .92 (docs/lab.md). Pilots with seed 0 fixed the demonstrations, and three lists for a "
        "position: two lists missed every good first move of one puzzle.",
        "",
        "Held out are the puzzles, of four numbers each. The three numbers that a move leaves may come from training "
        "puzzles too. Most of those that make 24 do, and demonstrations show their values: the last two lines show "
        "both apart. Every search uses the same model, so what it has seen helps them all alike.",
        "",
        "A vote counts expressions by their text, so two orders of one sum are two candidates. Best of N by the "
        "model's own values was not run.",
    ),
)
