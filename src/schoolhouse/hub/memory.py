"""This module estimates the memory for a model from the sizes in the model's config. `school estimate` measures the
memory of a run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from schoolhouse.model.config import ModelConfig
from schoolhouse.model.device import pick_device, pick_dtype
from schoolhouse.model.kernel_choice import best_attention, plain_attention
from schoolhouse.policy.sampling_memory import cache_bytes_per_token
from schoolhouse.runs.memory import machine_memory

MICROBATCH_TOKENS = 4_096
"""The number of tokens in a micro-batch, which is the default of the recipes."""

_CHUNK_LOGITS, _MIN_CHUNK_TOKENS = 1 << 25, 256  # as in policy/scoring.py, which computes logits in chunks
_PROGRAM = 300_000_000
"""The bytes that Python, torch and the compiled kernels take."""


class MemoryNeed(NamedTuple):
    """The number of bytes of memory that a model needs.

    `weights`: the bytes of the weights, in float32 and in the number type of matrix multiplications.
    `gradients`: the bytes of the gradients in float32.
    `moments`: the bytes of Adam's two moments in float32.
    `logits`: the bytes of the logits of one chunk of tokens, with the gradients of these logits.
    `activations`: the bytes of the activations of a micro-batch of 4,096 tokens.
    `kv_cache`: the bytes of the KV cache for 1,000 tokens of a rollout.
    """

    weights: float
    gradients: float
    moments: float
    logits: float
    activations: float
    kv_cache: float

    @property
    def sampling(self) -> float:
        """The number of bytes for the weights and the program, without the bytes of the KV cache."""
        return self.weights + _PROGRAM

    @property
    def training(self) -> float:
        return self.sampling + self.gradients + self.moments + self.logits + self.activations

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of a report, each as (topic, text)."""
        free, total = _device_memory()
        fits = "it fits" if self.training < free else "it does not fit"
        if self.training >= free:
            fits += "; set microbatch_tokens lower, train with activation_checkpointing, or use a smaller model"
        parts = ("weights", "gradients", "moments", "logits", "activations")
        named = ", ".join(f"{part} {_size(getattr(self, part))}" for part in parts)
        return [
            (
                "memory to sample",
                f"about {_size(self.sampling)}, and {_size(self.kv_cache)} for 1,000 tokens in the cache",
            ),
            ("memory to train", f"about {_size(self.training)} ({named}, and the program)"),
            ("memory here", f"{_size(free)} free of {_size(total)}: to train, {fits}"),
        ]


def memory_need(config: ModelConfig, num_parameters: int) -> MemoryNeed:
    """Estimate the memory for a model. `num_parameters` is the number of parameters in the weight files."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    plain = config.plain_attention
    slot_cache = (best_attention(config.head_dim, dtype, device) if plain else plain_attention(dtype, device))[1]
    copies = 0 if dtype == torch.float32 else dtype.itemsize  # matrix products read a copy in their own type
    chunk = min(MICROBATCH_TOKENS, max(_MIN_CHUNK_TOKENS, _CHUNK_LOGITS // config.vocab_size))
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    per_token = config.num_hidden_layers * (4 * config.hidden_size + heads + 3 * config.intermediate_size)
    return MemoryNeed(
        weights=(4 + copies) * num_parameters,
        gradients=4 * num_parameters,
        moments=8 * num_parameters,
        logits=2 * 4 * chunk * config.vocab_size,
        activations=(3 if copies else 4) * per_token * MICROBATCH_TOKENS,
        kv_cache=1_000 * cache_bytes_per_token(config, slot_cache),
    )


def _device_memory() -> tuple[int, int]:
    """Return two numbers of bytes: the free memory and the whole memory of the GPU. Without a GPU, the numbers are for
    the machine's memory."""
    return torch.cuda.mem_get_info() if pick_device().type == "cuda" else machine_memory()


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
