"""A stream of rollouts for training steps.

Rollouts are sampled up to `lag` updates before the policy learns from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from schoolhouse.policy.policy import Policy
from schoolhouse.policy.training import AdapterReference, ModelReference
from schoolhouse.types import Candidates, Key, Rollout, SchoolError


class RolloutStream:
    """Yields pairs (step, rollouts).

    With `lag` 0 the rollouts are on-policy, because they are sampled with the newest weights.

    `make_prompts`: a function that gives the prompts of a step.
    `sample`: a function that extends prompts with the policy.
    `lag`: the number of updates between sampling and learning.
    `reference`: a reference model whose weights change during training. Checkpoints also contain the weights of
    `reference`.

    A checkpoint of a run contains the state of the rollout stream, not only the policy. Pending rollouts (sampled, but
    not learned from yet) come from older weights, so a resumed run cannot sample them again.
    """

    def __init__(
        self,
        policy: Policy,
        make_prompts: Callable[[int], Sequence[Rollout]],
        sample: Callable[[Policy, Sequence[Rollout]], list[Rollout]],
        lag: int = 0,
        reference: ModelReference | AdapterReference | None = None,
    ) -> None:
        self.policy, self.lag, self.reference = policy, lag, reference
        self._make_prompts, self._sample = make_prompts, sample
        self._pending: deque[tuple[int, list[Rollout]]] = deque()

    def iter_steps(self, steps: range) -> Iterator[tuple[int, list[Rollout]]]:
        """Yield the rollouts of each step. A resumed stream yields its pending rollouts first."""
        for step in steps[len(self._pending) :]:
            self._pending.append((step, self._sample(self.policy, self._make_prompts(step))))
            if len(self._pending) > self.lag:
                yield self._pending.popleft()
        while self._pending:
            yield self._pending.popleft()

    def save(self, folder: Path) -> None:
        """Write the model of the policy to files."""
        self.policy.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream: the policy, the pending rollouts, and the weights of the reference."""
        state = {**self.policy.state_dict()}
        if self._pending:
            state["pending_rollouts"] = [(step, [_to_state(r) for r in rollouts]) for step, rollouts in self._pending]
        if self.reference:
            state["ref_policy"] = self.reference.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises SchoolError if the task no longer gives the problems of the pending rollouts.
        """
        self.policy.load_state_dict(state)
        if self.reference:
            self.reference.load_state_dict(state["ref_policy"])
        pending = state.get("pending_rollouts", ())
        self._pending = deque((step, self._from_state(step, states)) for step, states in pending)

    def _from_state(self, step: int, states: Sequence[dict[str, Any]]) -> list[Rollout]:
        """Restore the pending rollouts of a step.

        The prompts come from the task again, because problems are not saved.
        """
        prompts = self._make_prompts(step)
        saved = [(state["problem_id"], state["prompt_tokens"]) for state in states]
        if [(prompt.problem.id, len(prompt)) for prompt in prompts] != saved:
            raise SchoolError(
                f"in step {step} the task no longer gives the problems of the saved run, so the saved rollouts "
                "cannot be used: restore the old version of the task, or start a new run in another folder with --dir"
            )
        return [
            replace(
                prompt,
                key=Key(*state["key"]),
                candidates=Candidates(*(rows.numpy() for rows in state["candidates"])) if state["candidates"] else None,
                **{name: state[name] for name in _FIELDS},
            )
            for prompt, state in zip(prompts, states, strict=True)
        ]


_FIELDS = ("tokens", "loss_mask", "logprob", "turns", "finish_reason", "policy_version")


def _to_state(rollout: Rollout) -> dict[str, Any]:
    """Convert a rollout to plain values, which `torch.load` can read with `weights_only`."""
    prompt_tokens = rollout.turns[0] if rollout.turns else len(rollout)
    identity = {"problem_id": rollout.problem.id, "key": tuple(rollout.key), "prompt_tokens": prompt_tokens}
    identity["candidates"] = rollout.candidates and tuple(map(torch.from_numpy, rollout.candidates))
    return identity | {name: getattr(rollout, name) for name in _FIELDS}
