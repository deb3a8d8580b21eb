"""Compute how many rollouts fit into memory while they are sampled at the same time.

A slot is the room for one rollout. The number of slots changes the memory and the speed of sampling. The sampled tokens
do not depend on the number of slots, because the random numbers of a rollout depend only on its key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from schoolhouse.model.config import ModelConfig
from schoolhouse.model.device import free_memory
from schoolhouse.model.kv_cache import SlotKVCache
from schoolhouse.model.prompt_chunks import PREFILL_TOKENS
from schoolhouse.runs.memory import size_text
from schoolhouse.types import SchoolError

SHARE = 0.8
"""The share of the free memory that sampling can use. The remaining memory is for other parts of the program."""

_LOGIT_COPIES = 3
"""The number of arrays [S, V] of float32 that a step has at the same time: logits, logits with masks, probabilities."""

CANDIDATE_BYTES = 4 + 4
"""The memory of one candidate of one token in a rollout: a token id, and a log-probability."""


class SamplingNeed(NamedTuple):
    """The memory of one call of `extend`, in bytes.

    `rollouts` and `prompts`: the numbers of rollouts and of distinct prompts.
    `longest_prompt` and `capacity`: the maximum numbers of tokens of a prompt, and of the tokens after a prompt.
    `slot`: the keys and values of the tokens after the prompt, for one slot.
    `prompt`: the keys and values of one prompt.
    `logits`: the logits of one slot.
    `prefill`: the activations of a forward pass that reads prompts.
    """

    rollouts: int
    prompts: int
    longest_prompt: int
    capacity: int
    slot: int
    prompt: int
    logits: int
    prefill: int

    def total(self, num_slots: int) -> int:
        """Return the largest memory that sampling with this number of slots can need."""
        cache = num_slots * self.slot + min(num_slots, self.prompts) * self.prompt
        return cache + max(num_slots * self.logits, self.prefill)

    def slots_within(self, budget: float) -> int:
        """Return the number of slots that fit into `budget` bytes, or 0 if not even one slot fits.

        The rollouts are sampled in rounds of equal size, with as few rounds as possible.
        """
        rounds = 1
        while self.total(num_slots := -(-self.rollouts // rounds)) > budget:
            if num_slots == 1:
                return 0
            rounds += 1
        return num_slots


def cache_bytes_per_token(config: ModelConfig, slot_cache: type[SlotKVCache]) -> int:
    """Return the number of bytes of the keys and values of one token in one store of a KV cache."""
    numbers = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * numbers * slot_cache.dtype.itemsize


def sampling_need(
    config: ModelConfig,
    slot_cache: type[SlotKVCache],
    rollouts: int,
    prompts: int,
    longest_prompt: int,
    capacity: int,
) -> SamplingNeed:
    """Compute the memory of sampling from the sizes of the model and of the rollouts."""
    per_token = cache_bytes_per_token(config, slot_cache)
    read_together = max(longest_prompt, min(PREFILL_TOKENS, prompts * longest_prompt))
    heads = (2 * config.num_attention_heads + 4 * config.num_key_value_heads) * config.head_dim
    activations = min(PREFILL_TOKENS, read_together) * (4 * config.hidden_size + heads + 3 * config.intermediate_size)
    kept_kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * read_together
    ids_and_logprobs = 8 + 4  # of SlotTable
    return SamplingNeed(
        rollouts,
        prompts,
        longest_prompt,
        capacity,
        slot=capacity * (per_token + ids_and_logprobs),
        prompt=longest_prompt * per_token,
        logits=_LOGIT_COPIES * 4 * config.vocab_size,
        prefill=4 * (activations + kept_kv),
    )


def choose_num_slots(need: SamplingNeed, most: int, device: torch.device, reserved: int = 0) -> int:
    """Return the number of rollouts to sample at the same time, which is at most `most`.

    `reserved`: the memory that other parts of the run need during sampling, in bytes.
    Raises SchoolError if the memory is too small for one rollout.
    """
    need = need._replace(rollouts=max(1, min(need.rollouts, most)), prompts=max(1, min(need.prompts, most)))
    free = max(0, free_memory(device) - reserved)
    num_slots = need.slots_within(SHARE * free)
    if not num_slots:
        parts = f"KV cache {size_text(need.slot + need.prompt)}, logits {size_text(need.logits)}, prefill "
        raise SchoolError(
            f"sampling needs {size_text(need.total(1))} of memory for one rollout ({parts}{size_text(need.prefill)}), "
            f"but sampling can use only {size_text(SHARE * free)} ({SHARE:.0%} of {size_text(free)} free memory). A "
            f"rollout has a prompt of up to {need.longest_prompt:,} tokens and up to {need.capacity:,} new tokens: "
            "lower `max_new_tokens`, use shorter prompts or a smaller model, or close other programs"
        )
    return num_slots
