"""Load the policy that a recipe trains, and the reference model of its KL penalty."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from schoolhouse.model.lora import adapter_tensors, other_adapter
from schoolhouse.model.lora_folder import read_adapter_tensors
from schoolhouse.policy.policy import Policy, RolloutScores
from schoolhouse.runs.run import Run
from schoolhouse.types import Rollout


def load_policy(c: Any, run: Run, model: Path | str = "") -> Policy:
    """Load the policy that a recipe trains: from the newest checkpoint of the run, or from its starting model.

    `c`: the config of the recipe, with the keys `model`, `precision`, `optimizer`, `lora` and `seed`. A config may also
        have the keys `activation_checkpointing` and `sampling`.
    `model`: the starting model; with an empty text, `c.model`.
    """
    policy = Policy.load(
        run.model_path(model or c.model),
        c.precision,
        c.optimizer,
        getattr(c, "activation_checkpointing", False),
        chat=c,
        lora=c.lora,
        seed=c.seed,
    )
    if hasattr(c, "sampling"):
        policy.sampling_weights = c.sampling.weights
    if c.lora.rank:
        sizes = [(p.numel(), p.requires_grad) for p in policy.decoder.parameters()]
        trained, total = sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
        print(
            f"LoRA of rank {c.lora.rank}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})",
            file=sys.stderr,
        )
    return policy


class Reference(Protocol):
    """A model that is compared with a policy, for example in a KL penalty."""

    def score(
        self, rollouts: Sequence[Rollout], temperature: float = 1.0, microbatch_tokens: int = 4_096
    ) -> list[RolloutScores]: ...


def reference_policy(c: Any, policy: Policy) -> ModelReference | AdapterReference:
    """Return the starting model of the training, `c.model`, as a reference model for the policy.

    If the policy has an adapter, no second model is loaded: the reference is the policy with its adapter turned off. If
    `c.model` itself is an adapter, the reference is the policy with the adapter of `c.model`.
    """
    if policy.decoder.lora is None:
        return ModelReference(Policy.load(c.model, c.precision, chat=c))
    return AdapterReference(policy, read_adapter_tensors(c.model))


class ModelReference:
    """A reference model with its own copy of all weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def score(
        self, rollouts: Sequence[Rollout], temperature: float = 1.0, microbatch_tokens: int = 4_096
    ) -> list[RolloutScores]:
        return self.policy.score(rollouts, temperature, microbatch_tokens)

    def copy_from(self, policy: Policy) -> None:
        """Replace the weights of the reference by the weights of the policy."""
        self.policy.decoder.load_state_dict(policy.decoder.state_dict())

    @torch.no_grad()
    def move_towards(self, policy: Policy, rate: float) -> None:
        """Replace each weight w of the reference by (1 - rate) w + rate x the weight of the policy."""
        theirs = dict(policy.decoder.named_parameters())
        for name, parameter in self.policy.decoder.named_parameters():
            parameter.lerp_(theirs[name], rate)

    def state_dict(self) -> dict[str, Tensor]:
        return self.policy.decoder.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.policy.decoder.load_state_dict(state)


class AdapterReference:
    """A reference model that shares the base model with the policy. The reference has its own adapter or no adapter.

    `tensors`: the matrices of the adapter of the reference, or None for the base model.
    """

    def __init__(self, policy: Policy, tensors: dict[str, Tensor] | None) -> None:
        self.policy, self.tensors = policy, None
        if tensors is not None:
            self.load_state_dict(tensors)

    def score(
        self, rollouts: Sequence[Rollout], temperature: float = 1.0, microbatch_tokens: int = 4_096
    ) -> list[RolloutScores]:
        with other_adapter(self.policy.decoder, self.tensors):
            return self.policy.score(rollouts, temperature, microbatch_tokens)

    def copy_from(self, policy: Policy) -> None:
        """Replace the adapter of the reference by a copy of the policy's adapter."""
        self.tensors = {name: tensor.clone() for name, tensor in adapter_tensors(policy.decoder).items()}

    def move_towards(self, policy: Policy, rate: float) -> None:
        """Replace each number w in the reference's matrices A and B by (1 - rate) w + rate x the policy's number.

        A reference without an adapter must first get one with `copy_from`.
        """
        theirs = adapter_tensors(policy.decoder)
        for name, tensor in (self.tensors or {}).items():
            tensor.lerp_(theirs[name], rate)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors or {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        device = self.policy.device
        self.tensors = {name: tensor.to(device, torch.float32) for name, tensor in state.items()} or None
