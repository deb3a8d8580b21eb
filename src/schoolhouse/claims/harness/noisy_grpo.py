"""GRPO with fixed noise on the sampler's logits. The noise imitates a sampler with a number type of low precision.

The recipe is for experiments on importance correction. The learner computes log-probabilities without the noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.algorithms.settings import RolloutSampling
from schoolhouse.policy.policy import Policy
from schoolhouse.randomness import numpy_random
from schoolhouse.recipes import grpo
from schoolhouse.runs.run import Run
from schoolhouse.types import Key, Rollout


class Config(grpo.Config):
    sampler_noise: float = Field(0.0, ge=0)
    """The standard deviation of the noise on each logit; 0 means no noise."""


def noisy_grpo(c: Config, run: Run) -> None:
    def sample(
        policy: Policy, prompts: Sequence[Rollout], sampling: RolloutSampling, num_candidates: int
    ) -> list[Rollout]:
        bias = logit_noise(c.sampler_noise, policy.decoder.config.vocab_size) if c.sampler_noise else None
        limit, temperature = sampling.max_new_tokens, sampling.temperature
        return policy.extend(prompts, limit, temperature=temperature, num_candidates=num_candidates, logit_bias=bias)

    grpo.grpo(c, run, sample)


def logit_noise(std: float, vocab_size: int) -> Tensor:
    """The noise [V]. The noise is the same in every call and in every run."""
    values = numpy_random(Key(0, "sampler noise")).normal(0.0, std, vocab_size)
    return torch.from_numpy(values).float()
