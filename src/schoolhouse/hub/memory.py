"""This module computes the memory to sample from a model and to train it. `school estimate` measures the memory of a
run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from schoolhouse.model.device import free_memory, pick_device
from schoolhouse.model.lora import Adapter, add_adapter, target_layers
from schoolhouse.policy.memory_check import LEARNING_PARTS, CheckedPolicy, LearningNeed, copied_bytes, learning_need
from schoolhouse.policy.sampling_memory import cache_bytes_per_token
from schoolhouse.runs.memory import machine_memory
from schoolhouse.runs.size_defaults import LORA_RANK
from schoolhouse.types import SchoolError

MICROBATCH_TOKENS = 4_096
"""The number of tokens in a micro-batch, which is the default of the recipes."""

_PROGRAM = 300_000_000
"""The bytes that Python, torch and the compiled kernels take."""


class MemoryNeed(NamedTuple):
    """The number of bytes of memory that a model needs.

    `weights`: the bytes of the weights as they are stored.
    `copies`: the bytes of the weights in the number type of the matrix products, if they are stored in another type.
    `kv_cache`: the bytes of the KV cache for 1,000 tokens of a rollout.
    `full`: the memory of an update of the whole model, without the weights. None for an adapter.
    `lora`: the same for an adapter. None if the model has layers that cannot have an adapter.
    `rank`: the rank of this adapter.

    `full` and `lora` are None too if the free memory is too small to measure them.
    """

    weights: int
    copies: int
    kv_cache: int
    full: LearningNeed | None
    lora: LearningNeed | None
    rank: int

    @property
    def sampling(self) -> int:
        """The number of bytes for the weights and the program, without the bytes of the KV cache."""
        return self.weights + self.copies + _PROGRAM

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of a report, each as (topic, text)."""
        cache = f"and {_size(self.kv_cache)} for 1,000 tokens in the cache"
        lines = [("memory to sample", f"about {_size(self.sampling)}, {cache}")]
        free, total = _device_memory()
        fits = []
        for name, need in (("the whole model", self.full), (f"LoRA of rank {self.rank}", self.lora)):
            if need is None:
                continue
            whole = self.weights + _PROGRAM + need.total
            named = [f"{part} {_size(size)}" for part in LEARNING_PARTS if (size := getattr(need, part))]
            parts = ", ".join([f"weights {_size(self.weights)}", *named, "and the program"])
            lines.append(("memory to train", f"{name}: about {_size(whole)} ({parts})"))
            fits.append(f"{name} {'fits' if whole < free else 'does not fit'}")
        if not fits:
            fits = ["to train, nothing fits"]
        advice = "; set microbatch_tokens lower, train with activation_checkpointing, or use a smaller model"
        text = "; ".join(fits) + (advice if "not fit" in fits[-1] or "nothing" in fits[-1] else "")
        return [*lines, ("memory here", f"{_size(free)} free of {_size(total)}: {text}")]


def memory_need(policy: CheckedPolicy) -> MemoryNeed:
    """Compute the memory for a model, with the function that checks the memory before a run.

    `policy`: a policy whose weights are not needed any more, because a policy without an adapter gets one.
    """
    decoder, length = policy.decoder, min(MICROBATCH_TOKENS, policy.max_seq_len)
    weights, copies = sum(weight.nbytes for weight in decoder.parameters()), copied_bytes(policy)
    cache = 1_000 * cache_bytes_per_token(decoder.config, policy.slot_cache)
    full, lora, rank = None, None, decoder.lora.rank if decoder.lora else LORA_RANK
    if copies < free_memory(policy.device):
        if decoder.lora is None:
            full = learning_need(policy, length, MICROBATCH_TOKENS)
        if decoder.lora or _add_default_adapter(policy):
            lora = learning_need(policy, length, MICROBATCH_TOKENS)
    return MemoryNeed(weights, copies, cache, full, lora, rank)


def _add_default_adapter(policy: CheckedPolicy) -> bool:
    """Give a model the adapter that training has by default. Returns whether its layers can have one."""
    try:
        names = target_layers(policy.decoder, "all")
    except SchoolError:
        return False
    add_adapter(policy.decoder, Adapter(LORA_RANK, 32.0, names, "", ""))
    return True


def _device_memory() -> tuple[int, int]:
    """Return two numbers of bytes: the free memory and the whole memory of the GPU. Without a GPU, the numbers are for
    the machine's memory."""
    return torch.cuda.mem_get_info() if pick_device().type == "cuda" else machine_memory()


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
