"""Compute the frequencies of rotary position embeddings (Su et al. 2021), also with scaling for long contexts.

The shapes use this letter: D head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""The values of `rope_type` that `rope_frequencies` computes."""

SCALING_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        "factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim "
        "truncate".split()
    ),
}
"""The keys of each `rope_type`, under the names of a Hugging Face config.json."""


def rope_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any], max_positions: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, float]:
    """Return the angle per position [D / 2], and a factor that multiplies cosine and sine.

    `scaling` has the key `rope_type` and the other keys of this RoPE type. An empty mapping `scaling` means the default
    RoPE type.
    `max_positions` is the longest context of the model in tokens. `max_positions` is also the context length of
    pretraining if `scaling` does not contain this length.
    """
    dims = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    frequency = 1.0 / theta ** (dims / head_dim)
    rope_type = scaling.get("rope_type", "default")
    if rope_type == "linear":  # position interpolation, Chen et al. 2023
        return frequency / scaling["factor"], 1.0
    pretrained = scaling.get("original_max_position_embeddings") or max_positions
    if rope_type == "llama3":
        return _llama3(frequency, pretrained, scaling), 1.0
    if rope_type == "yarn":
        factor = scaling.get("factor") or max_positions / pretrained
        return _yarn(frequency, head_dim, theta, pretrained, factor, scaling), _yarn_magnitude(factor, scaling)
    return frequency, 1.0


def rotation(positions_N: Tensor, frequency: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    """The cosines and the sines at positions [N], each of shape [N, 1, D / 2]. The other arguments are the result of
    `rope_frequencies`."""
    angle = (positions_N[:, None].float() * frequency)[:, None]
    return angle.cos() * magnitude, angle.sin() * magnitude


def _llama3(frequency: Tensor, pretrained: float, scaling: Mapping[str, Any]) -> Tensor:
    """Scale as in Llama 3.1: divide low frequencies by `factor`, keep high frequencies, and interpolate between the
    two."""
    turns = pretrained * frequency / (2 * math.pi)  # in the context of pretraining
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling["factor"])


def _yarn(
    frequency: Tensor, head_dim: int, theta: float, pretrained: float, factor: float, scaling: Mapping[str, Any]
) -> Tensor:
    """Scale as YaRN (Peng et al. 2023): interpolate linearly between the dimensions with `beta_fast` and `beta_slow`
    full rotations."""

    def dimension(turns: float) -> float:
        """Return the RoPE dimension that makes `turns` full rotations within the context length of pretraining."""
        return head_dim * math.log(pretrained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    index = torch.arange(len(frequency), device=frequency.device, dtype=torch.float32)
    interpolated = ((index - first) / ((last - first) or 0.001)).clamp(0, 1)
    return frequency * (1 - interpolated) + frequency / factor * interpolated


def _yarn_magnitude(factor: float, scaling: Mapping[str, Any]) -> float:
    """Return the factor for cosine and sine, which changes the temperature of attention (YaRN, section 3.4)."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
