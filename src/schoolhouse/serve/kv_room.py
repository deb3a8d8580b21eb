"""This file chooses the size of the KV cache: how many sequences fit into memory, and how long the sequences can be.

A KV cache has a shape: a number of slots, and a number of tokens for each slot. If every slot has room for the full
context, the cache can need more memory than a machine has. For example, 64 slots of 32,768 tokens of Qwen2.5-0.5B need
103 GB. So the shape depends on the free memory and on the requests. For requests of usual length, the cache has many
slots. While a longer request runs, the cache has fewer and longer slots. If all slots with the full context fit into
memory, the shape never changes.
"""

from __future__ import annotations

from typing import NamedTuple

from schoolhouse.model.device import free_memory
from schoolhouse.model.packed_decoder import packed_bytes
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling_memory import cache_bytes_per_token
from schoolhouse.runs.memory import size_text
from schoolhouse.types import SchoolError

MIN_USUAL_LEN = 2_048
"""The minimum number of tokens of a slot of the usual shape. If memory is small, the cache gets fewer slots instead."""
_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""The share of the free memory that a KV cache can use. The rest is for the activations of a prefill."""


class CacheShape(NamedTuple):
    """The shape of a KV cache: the number of sequences, and the maximum length of a sequence, including its prompt."""

    num_seqs: int
    max_len: int


class KVRoom(NamedTuple):
    """The memory of the KV cache of one engine.

    `max_num_seqs`: the maximum number of sequences at the same time.
    `max_model_len`: the maximum number of tokens of a sequence.
    `context_len`: the maximum number of tokens that a sequence could have with unlimited memory.
    `bytes_per_token`: the number of bytes that one token needs in a slot.
    `budget`: the maximum size of the KV cache in bytes.
    `free`: the number of bytes of memory that were free when the model was loaded.
    """

    max_num_seqs: int
    max_model_len: int
    context_len: int
    bytes_per_token: int
    budget: int
    free: int

    @property
    def usual(self) -> CacheShape:
        """The shape for requests of usual length, which has the largest number of slots."""
        len_of_all = self.budget // (self.bytes_per_token * self.max_num_seqs)
        return self._shape(min(self.max_model_len, max(MIN_USUAL_LEN, len_of_all)))

    def shape_for(self, num_tokens: int) -> CacheShape:
        """Return a shape whose slots have room for a sequence of `num_tokens` tokens, with as many slots as possible.

        The length of the slots is the usual length times a power of 2, so that similar requests use the same shape.
        """
        length = self.usual.max_len
        while length < num_tokens:
            length *= 2
        return self._shape(min(length, self.max_model_len))

    def default_len(self, prompt_tokens: int) -> int:
        """Return the maximum length of a sequence if its request does not set the number of new tokens."""
        return self.shape_for(prompt_tokens + self.usual.max_len // 2).max_len

    @property
    def reserved(self) -> int:
        """The number of bytes of the largest KV cache that the engine can have."""
        return max(shape.num_seqs * shape.max_len for shape in (self.usual, self._longest)) * self.bytes_per_token

    def summary(self) -> str:
        """Describe the possible shapes of the KV cache in one line."""
        usual, longest = self.usual, self._longest
        text = f"KV cache: {usual.num_seqs} sequences of {usual.max_len:,} tokens"
        if longest != usual:
            text += f", or {longest.num_seqs} of {longest.max_len:,} tokens for requests that ask for more"
        if self.max_model_len < self.context_len:
            text += f" (the memory is too small for the context length of {self.context_len:,} tokens)"
        return f"{text}; the cache uses at most {size_text(self.reserved)} of {size_text(self.free)} of free memory"

    @property
    def _longest(self) -> CacheShape:
        return self._shape(self.max_model_len)

    def _shape(self, length: int) -> CacheShape:
        return CacheShape(min(self.max_num_seqs, max(1, self.budget // (self.bytes_per_token * length))), length)


def plan_room(policy: Policy, max_num_seqs: int, max_model_len: int | None, reserved: int = 0) -> KVRoom:
    """Choose the size of the KV cache of a loaded model.

    `max_model_len`: the maximum length of a sequence that the user has set, or None for the model's context length.
    `reserved`: the size of the KV caches of other models in bytes. On a CPU, a cache uses memory only after tokens are
        written to the cache, so the function subtracts `reserved` from the free memory.

    The packed weights of the model are made at the first request, so their size is subtracted from the free memory too.
    Raises SchoolError if a sequence of `max_model_len` tokens does not fit into memory. Without `max_model_len`, the
    function raises SchoolError if a sequence of `MIN_USUAL_LEN` tokens does not fit into memory.
    """
    packed = packed_bytes(policy.decoder, policy.sampling_weights, policy.dtype, policy.precision == "exact")
    used_later = round(packed) + (reserved if policy.device.type == "cpu" else 0)
    free = max(0, free_memory(policy.device) - used_later)
    budget = int(free * _SHARE.get(policy.device.type, 0.5))
    context_len = min(max_model_len or policy.max_seq_len, policy.max_seq_len)
    bytes_per_token = slot_bytes_per_token(policy)
    fitting = budget // bytes_per_token
    smallest = context_len if max_model_len else min(context_len, MIN_USUAL_LEN)
    if fitting < smallest:
        raise SchoolError(
            f"a sequence of {smallest:,} tokens needs {size_text(smallest * bytes_per_token)} of KV cache, but the "
            f"cache can use only {size_text(budget)} (free memory: {size_text(free)}); close other programs, or set "
            f"--max_model_len to a smaller number"
        )
    return KVRoom(max_num_seqs, min(context_len, fitting), context_len, bytes_per_token, budget, free)


def slot_bytes_per_token(policy: Policy) -> int:
    """Return the number of bytes that one token needs in a slot: the keys and values of all layers.

    The number includes both stores of `SlotKVCache`: the store of the prompts and the store of the completions.
    """
    return 2 * cache_bytes_per_token(policy.decoder.config, policy.slot_cache)
