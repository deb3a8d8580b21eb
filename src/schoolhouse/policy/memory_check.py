"""Check before a run that there is enough memory for the learner and for the sampler.

A process in a container is killed without a message when its memory is full. For this reason, the needed memory is
first computed and compared with the free memory. After this comparison, the run tries the largest micro-batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from schoolhouse.algorithms.packing import Batch, Scores, pack, token_mean
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.device import free_memory
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache, trim_memory
from schoolhouse.model.packed_decoder import SamplingWeights, packed_bytes
from schoolhouse.policy.learner import Learner
from schoolhouse.policy.sampling_memory import CANDIDATE_BYTES, choose_num_slots, sampling_need
from schoolhouse.policy.scoring import logits_chunk
from schoolhouse.runs.memory import size_text
from schoolhouse.runs.progress import phased
from schoolhouse.types import Candidates, Key, Precision, Problem, Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

_PROBE_TOKENS = (16, 48)  # two sizes, to subtract tensors of constant size
_CANDIDATE_BYTES = 8 + 4 + 4 * 4  # of a candidate: its id, the sampler's log-probability, and four arrays of the loss
_LOGIT_ARRAYS = 3  # arrays [chunk, V] of float32 at the same time: logits, their gradient, and a copy with masks


class CheckedPolicy(Protocol):
    """The parts of a `Policy` that the memory check uses. The file policy.py imports this file, so this file cannot
    import policy.py."""

    decoder: Decoder | HFAdapter
    device: torch.device
    dtype: torch.dtype
    precision: Precision
    sampling_weights: SamplingWeights
    packed_attention: type[PackedAttention]
    slot_cache: type[SlotKVCache]

    @property
    def learner(self) -> Learner: ...

    @property
    def max_seq_len(self) -> int: ...

    def autocast(self) -> AbstractContextManager[object]: ...

    def batch_scores(self, batch: Batch, temperature: float) -> Scores: ...


LEARNING_PARTS = ("gradients", "moments", "copies", "activations", "logits")
"""The fields of `LearningNeed` that are added up."""


class LearningNeed(NamedTuple):
    """The memory of one update, in bytes. The weights are not included, because the weights are already in memory.

    `gradients` and `moments`: float32 numbers for each trained weight, one (gradients) and two (moments); 0 if already
    in memory. `copies`: the weights in the number type of the matrix products. `activations`: everything that the
    forward pass of the largest micro-batch keeps for the backward pass. `logits`: the logits of one chunk of tokens.
    `tokens`: the number of tokens of the largest micro-batch.
    """

    gradients: int
    moments: int
    copies: int
    activations: int
    logits: int
    tokens: int

    @property
    def total(self) -> int:
        return self.kept + self.copies + self.activations + self.logits

    @property
    def kept(self) -> int:
        """The memory of an update that stays in use while the policy samples, in bytes."""
        return self.gradients + self.moments


@phased("checking that the largest batch fits in memory")
def check_peak_memory(
    policy: CheckedPolicy,
    max_len: int,
    microbatch_tokens: int,
    prompts: Sequence[Rollout] = (),
    num_slots: int = 512,
    num_candidates: int = 0,
) -> None:
    """Check the memory for the largest micro-batch, and for sampling from the prompts of one step.

    `max_len`: the maximum number of tokens in a rollout, including its prompt.
    `prompts`: one prompt for each rollout of a step; empty for a run that does not sample.
    `num_slots`: the maximum number of rollouts that are sampled at the same time.
    `num_candidates`: the number of most likely tokens that a rollout records for each sampled token.

    Raises SchoolError if the memory is too small. The error names the sizes, and the config keys to lower.
    """
    num_candidates = min(num_candidates, policy.decoder.config.vocab_size)
    max_len = min(max_len, policy.max_seq_len)
    trim_memory()  # loading a model frees memory that the C library keeps
    free = free_memory(policy.device)  # `learning_need` makes copies of frozen weights, which are a part of the need
    need = learning_need(policy, max_len, microbatch_tokens, num_candidates)
    _check_learning(policy, need, free)
    if prompts:
        exact = policy.precision == "exact"
        packed = packed_bytes(policy.decoder, policy.sampling_weights, policy.dtype, exact)
        new_tokens = len(prompts) * (max_len - min(map(len, prompts)))
        recorded = new_tokens * num_candidates * CANDIDATE_BYTES
        _check_sampling(policy, max_len, prompts, num_slots, need.kept + round(packed) + recorded)
    try:
        _try_largest_batch(policy, max_len, microbatch_tokens, num_candidates)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"and there was not enough memory when the run tried it ({size_text(free)} were free)"
        raise SchoolError(_learning_error(need, reason, policy)) from error


def check_learning_memory(policy: CheckedPolicy, num_tokens: int) -> None:
    """Check the memory for the first update, whose largest micro-batch has `num_tokens` tokens.

    Raises SchoolError if the memory is too small. The error names the sizes, and the config keys to lower.
    """
    free = free_memory(policy.device)  # before `learning_need`, as in `check_peak_memory`
    _check_learning(policy, learning_need(policy, num_tokens, num_tokens), free)


def _check_learning(policy: CheckedPolicy, need: LearningNeed, free: int) -> None:
    if need.total > free:
        raise SchoolError(_learning_error(need, f"but only {size_text(free)} of memory are free", policy))


def learning_need(policy: CheckedPolicy, max_len: int, microbatch_tokens: int, num_candidates: int = 0) -> LearningNeed:
    """Compute the memory of an update on the largest micro-batch.

    `num_candidates`: the number of candidates of each token, whose log-probabilities are computed too.
    """
    max_len = min(max_len, policy.max_seq_len)
    tokens = max(1, microbatch_tokens // max_len) * max_len
    weights = list(policy.decoder.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    has_gradients = any(weight.grad is not None for weight in weights)
    has_moments = "learner" in vars(policy) and bool(policy.learner.optimizer.state)
    vocab_size = policy.decoder.config.vocab_size
    return LearningNeed(
        gradients=0 if has_gradients else 4 * trained,
        moments=0 if has_moments else 8 * trained,
        copies=copied_bytes(policy),
        activations=int(tokens * (_activation_bytes(policy) + num_candidates * _CANDIDATE_BYTES)),
        logits=(_LOGIT_ARRAYS + bool(num_candidates)) * 4 * vocab_size * min(tokens, logits_chunk(vocab_size)),
        tokens=tokens,
    )


def copied_bytes(policy: CheckedPolicy) -> int:
    """Return the size of the copies of the weight matrices in the number type of the matrix products, in bytes.

    A matrix that is stored in this number type has no copy. Without autocast, no copy is kept.
    """
    if policy.dtype == torch.float32:
        return 0
    copied = (w for w in policy.decoder.parameters() if w.dim() > 1 and w.dtype != policy.dtype)
    return policy.dtype.itemsize * sum(weight.numel() for weight in copied)


def _activation_bytes(policy: CheckedPolicy) -> float:
    """Measure how many bytes the forward pass keeps for each token of a micro-batch.

    With activation checkpointing, the number includes the input of each block, and all activations of one block.
    """
    decoder, longest = policy.decoder, policy.max_seq_len
    recomputes, layers = decoder.activation_checkpointing, decoder.config.num_hidden_layers
    decoder.activation_checkpointing = False
    sizes = [max(1, min(size, longest // 3 * times)) for size, times in zip(_PROBE_TOKENS, (1, 3), strict=True)]
    try:
        few, many = (_saved_bytes(policy, size) for size in sizes)
    finally:
        decoder.activation_checkpointing = recomputes
    each = max(0.0, (many - few) / max(1, sizes[1] - sizes[0]))
    return each / layers + 4 * layers * decoder.config.hidden_size if recomputes else each


def _saved_bytes(policy: CheckedPolicy, num_tokens: int) -> int:
    """Return the size of all tensors that a forward pass saves for the backward pass, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in policy.decoder.parameters()}
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # while a tensor is held, no other tensor has its address

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor), policy.autocast():
        packed = policy.packed_attention([num_tokens], policy.device)
        policy.decoder(torch.zeros(num_tokens, dtype=torch.long, device=policy.device), packed.positions, packed)
    return sum(saved.values())


def _check_sampling(
    policy: CheckedPolicy, max_len: int, prompts: Sequence[Rollout], num_slots: int, reserved: int
) -> None:
    """Check the memory for sampling. Prints a note on stderr if not all rollouts fit at the same time."""
    longest_prompt = max(map(len, prompts))
    distinct = len({prompt.tokens for prompt in prompts})
    sizes = (len(prompts), distinct, longest_prompt, max(1, max_len - longest_prompt))
    need = sampling_need(policy.decoder.config, policy.slot_cache, *sizes)
    wanted = min(num_slots, len(prompts))
    fitting = choose_num_slots(need, num_slots, policy.device, reserved)
    if fitting < wanted:
        whole = size_text(need._replace(rollouts=wanted).total(wanted))
        print(
            f"school: note: sampling {wanted} rollouts at the same time would need up to {whole} of memory, so "
            f"{fitting} are sampled at the same time; with a lower `sampling.max_new_tokens`, more rollouts fit",
            file=sys.stderr,
        )


def _try_largest_batch(policy: CheckedPolicy, max_len: int, microbatch_tokens: int, num_candidates: int) -> None:
    loss_mask, logprob = (False, *(True for _ in range(max_len - 1))), (math.nan,) * max_len
    row = Rollout(Problem("rehearsal", (), ""), Key(0, "rehearsal"), (0,) * max_len, loss_mask, logprob)
    if num_candidates:
        shape = (max_len - 1, num_candidates)
        row = replace(row, candidates=Candidates(np.zeros(shape, np.int32), np.zeros(shape, np.float32)))
    rows = [row] * max(1, microbatch_tokens // max_len)
    try:
        for batch in pack(rows, token_mean(rows), microbatch_tokens, prompts=False):
            scores = policy.batch_scores(batch, 1.0)
            total = scores.logprob.sum()
            if scores.candidates is not None:
                total = total + scores.candidates.sum()
            total.backward()
    finally:
        policy.decoder.zero_grad(set_to_none=True)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    texts = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(one in text for one in texts)


def _learning_error(need: LearningNeed, reason: str, policy: CheckedPolicy) -> str:
    parts = ", ".join(f"{name} {size_text(getattr(need, name))}" for name in LEARNING_PARTS if getattr(need, name))
    keys = ["lower `microbatch_tokens`", "lower `sampling.max_new_tokens`"]
    if not policy.decoder.activation_checkpointing:
        keys.append("set `activation_checkpointing` to true")
    return (
        f"learning from a micro-batch of {need.tokens:,} tokens needs {size_text(need.total)} of memory ({parts}), "
        f"{reason}: {', '.join(keys)}, use a smaller model, or close other programs"
    )
