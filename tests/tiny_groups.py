"""Graded groups made by hand, for tests of what comes after grading."""

from __future__ import annotations

from schoolhouse.types import NAN, FinishReason, Group, Key, Problem, Rollout, Verdict


def group(*rewards: float | None, finish_reason: FinishReason = "stop", problem: int = 0) -> Group:
    """Rollouts of one problem with these rewards (None: ungraded): prompts of 2 tokens, completions of 1, 2, 3 ..."""
    instance = Problem(f"p{problem}", (), "1")
    rollouts = tuple(
        Rollout(
            instance,
            Key(0, "test", 0, problem, sample),
            tuple(range(3 + sample)),
            (False, False) + (True,) * (1 + sample),
            (NAN, NAN) + (-1.0,) * (1 + sample),
            (2,),
            finish_reason,
        )
        for sample in range(len(rewards))
    )
    return Group(instance, rollouts, tuple(verdict(reward) for reward in rewards))


def verdict(reward: float | None) -> Verdict:
    return Verdict(reward, "the verifier timed out" if reward is None else "")


def rewards_of(groups: list[Group]) -> list[float | None]:
    """The reward of each rollout, group after group; None: ungraded."""
    return [verdict.reward for group in groups for verdict in group.verdicts]
