"""Controls of GRPO: what must not teach anything does not, and praise for wrong answers makes it worse.

Random rewards raised a benchmark once without teaching anything (Shao et al. 2025, arXiv 2506.10947); a small model
trained here has no such habits to amplify, so a rise under random or shuffled rewards would be a fault of ours.
The rule, written before the run: random, shuffled and learning rate 0 stay within 0.05 of the start in pass@1, the
flipped sign ends more than 0.05 below it, and real rewards end more than 0.05 above.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import Scale
from schoolhouse.durable import to_json, write_whole
from schoolhouse.measure.evaluate import evaluate
from schoolhouse.policy.policy import Policy
from schoolhouse.randomness import python_random
from schoolhouse.recipes import grpo
from schoolhouse.run import Run
from schoolhouse.tasks.task import open_task
from schoolhouse.types import Group, Key

MARGIN = 0.05


class Config(Frozen):
    model: str
    """Folder of the model that every arm starts from."""
    task: str = "school:chain+addition+compare?digits=3&decimals=1"
    seed: int = 0
    steps: int = Field(80, gt=0)
    length: int = Field(100, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    adam_eps: float = Field(3e-4, gt=0)
    scale: Scale = "group_std"
    problems: int = Field(400, gt=0)
    """Held-out problems of the exam."""
    samples: int = Field(8, gt=0)


def randomly(step: int, groups: list[Group]) -> list[Group]:
    """A coin for every verdict."""
    coin = python_random(Key(0, "random rewards", step))
    return _with_scores(groups, [float(coin.random() < 0.5) for group in groups for _ in group.verdicts])


def shuffled(step: int, groups: list[Group]) -> list[Group]:
    """The verdicts of the step, each given to somebody else's answer, whatever the problem."""
    scores = [verdict.score for group in groups for verdict in group.verdicts]
    python_random(Key(0, "shuffled rewards", step)).shuffle(scores)
    return _with_scores(groups, scores)


def flipped(step: int, groups: list[Group]) -> list[Group]:
    """Right is wrong: the sign of every advantage is turned."""
    scores = [verdict.score for group in groups for verdict in group.verdicts]
    return _with_scores(groups, [None if score is None else 1.0 - score for score in scores])


ARMS: dict[str, tuple[grpo.Alter, dict[str, Any]]] = {
    "real": (lambda step, groups: groups, {}),
    "random": (randomly, {}),
    "shuffled": (shuffled, {}),
    "rate_0": (lambda step, groups: groups, {"learning_rate": 0.0}),
    "flipped": (flipped, {}),
}


def run_claim(c: Config, folder: Path) -> dict[str, Any]:
    """Run every arm in `folder` (an arm that is finished is not run again); gives what grpo_controls.json holds."""
    task = open_task(c.task, c.seed)
    results = {"start": _exam(Policy.load(c.model), task, c)}
    keys = "model task seed steps length learning_rate adam_eps scale".split()
    shared: dict[str, Any] = {**{key: getattr(c, key) for key in keys}, "token_budget": 4096}
    for name, (alter, changes) in ARMS.items():
        config = grpo.Config(**{**shared, **changes})
        with Run.open(folder / name, config, "grpo") as run:
            if not run.finished:
                grpo.grpo(config, run, alter)
        results[name] = _exam(Policy.load(run.model), task, c)
    start = results["start"]["pass_at_1"]
    change = {name: result["pass_at_1"] - start for name, result in results.items() if name != "start"}
    holds = {
        **{name: abs(change[name]) <= MARGIN for name in ("random", "shuffled", "rate_0")},
        "flipped": change["flipped"] < -MARGIN,
        "real": change["real"] > MARGIN,
    }
    claim = {
        "claim": "grpo_controls",
        "verdict": "PASS" if all(holds.values()) else "FAIL",
        "config": c.model_dump(mode="json", exclude={"model"}),
        "margin": MARGIN,
        "arms": {name: {**results[name], "change": change.get(name, 0.0)} for name in results},
        "holds": holds,
    }
    write_whole(folder / "grpo_controls.json", to_json(claim, 2) + "\n")
    write_whole(folder / "grpo_controls.md", markdown(claim))
    return claim


def markdown(claim: dict[str, Any]) -> str:
    """The page of the claim."""
    config = claim["config"]
    rows = [
        f"| {name} | {arm['pass_at_1']:.3f} [{arm['interval'][0]:.3f}, {arm['interval'][1]:.3f}] "
        f"| {arm['change']:+.3f} | {arm['thought_tokens']:.1f} | {'yes' if claim['holds'].get(name, True) else 'NO'} |"
        for name, arm in claim["arms"].items()
    ]
    return "\n".join(
        [
            f"# grpo_controls: {claim['verdict']}",
            "",
            "Random rewards, rewards shuffled across problems and learning rate 0 must stay within "
            f"{claim['margin']} of the start in pass@1; the flipped sign must fall, real rewards must rise, by more.",
            "",
            f"Task `{config['task']}`, {config['steps']} steps of 32 problems x 16 samples, learning rate "
            f"{config['learning_rate']}, adam_eps {config['adam_eps']}, scale {config['scale']}, no preference for "
            f"brevity (that would be a reward of its own); seed {config['seed']}; exam: {config['problems']} held-out "
            f"problems, {config['samples']} answers each; 95 % intervals over problems.",
            "",
            "| arm | pass@1 | change | thought tokens | holds |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _exam(policy: Policy, task: Any, c: Config) -> dict[str, Any]:
    overall = evaluate(policy, task, c.problems, c.samples, c.length, seed=c.seed).overall
    score = overall["pass_at_1"]
    return {
        "pass_at_1": score.value,
        "interval": [score.low, score.high],
        "thought_tokens": overall["thought_tokens"].value,
    }


def _with_scores(groups: list[Group], scores: list[float | None] | list[float]) -> list[Group]:
    given = iter(scores)
    return [
        Group(
            group.problem,
            group.rollouts,
            tuple(
                replace(v, score=s, reason=v.reason or "no score") for v, s in zip(group.verdicts, given, strict=False)
            ),
        )
        for group in groups
    ]
