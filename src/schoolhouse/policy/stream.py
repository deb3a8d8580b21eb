"""Rollouts for each step, sampled `lag` updates before they are learned from; what waits is saved with the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Rollout, SchoolError


class RolloutStream:
    """(step, rollouts) for each step. Lag 0 is on-policy: sample, hand out, wait until the caller has updated.

    ask     the prefixes of a step
    act     lets the policy go on from prefixes
    beside  another policy whose weights change, such as a reference that is renewed

    A run keeps the stream instead of its policy: rollouts that wait for their step come from weights that are gone by
    the time a run goes on, so they cannot be sampled again.
    """

    def __init__(
        self,
        policy: Policy,
        make_prompts: Callable[[int], Sequence[Rollout]],
        sample: Callable[[Policy, Sequence[Rollout]], list[Rollout]],
        lag: int = 0,
        ref_policy: Policy | None = None,
    ) -> None:
        self.policy, self.lag, self.beside = policy, lag, ref_policy
        self._ask, self._act = make_prompts, sample
        self._waiting: deque[tuple[int, list[Rollout]]] = deque()

    def iter_steps(self, steps: range) -> Iterator[tuple[int, list[Rollout]]]:
        """Hand out the steps, those that wait first: a stream that was saved goes on where it stopped."""
        for step in steps[len(self._waiting) :]:
            self._waiting.append((step, self._act(self.policy, self._ask(step))))
            if len(self._waiting) > self.lag:
                yield self._waiting.popleft()
        while self._waiting:
            yield self._waiting.popleft()

    def save(self, folder: Path) -> None:
        self.policy.save(folder)

    def state_dict(self) -> dict[str, Any]:
        waiting = [(step, [_said(rollout) for rollout in rollouts]) for step, rollouts in self._waiting]
        ref_policy = {"beside": self.beside.decoder.state_dict()} if self.beside else {}
        return {**self.policy.state_dict(), **({"waiting": waiting} if waiting else {}), **ref_policy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state)
        if self.beside:
            self.beside.decoder.load_state_dict(state["beside"])
        self._waiting = deque((step, self._again(step, said)) for step, said in state.get("waiting", ()))

    def _again(self, step: int, said: Sequence[dict[str, Any]]) -> list[Rollout]:
        """The problems are asked for again, what was said to them was saved."""
        asked = self._ask(step)
        then = [(words["problem"], len(words["tokens"]) - words["new"]) for words in said]
        if [(prefix.problem.id, len(prefix)) for prefix in asked] != then:
            raise SchoolError(
                f"the task asks other problems in step {step} than when the run was saved: it has changed, and what "
                "was said to its problems cannot be used; put the old task back, or start anew with --dir"
            )
        return [
            replace(prefix, key=Key(*words["key"]), **{name: words[name] for name in _FIELDS})
            for prefix, words in zip(asked, said, strict=True)
        ]


_FIELDS = ("tokens", "loss_mask", "logprob", "turns", "finish_reason", "policy_version")


def _said(rollout: Rollout) -> dict[str, Any]:
    """What `torch.save` can keep without code."""
    start = rollout.turns[0] if rollout.turns else len(rollout)
    about = {"problem": rollout.problem.id, "key": tuple(rollout.key), "new": len(rollout) - start}
    return {**about, **{name: getattr(rollout, name) for name in _FIELDS}}
