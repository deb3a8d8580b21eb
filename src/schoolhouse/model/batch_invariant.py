"""Precision `exact`: the result for a row of a batch has the same bits, whatever the other rows of the batch are.

With precision `exact`, sampler and learner compute bitwise equal log-probabilities. Precision `exact` uses float32 and
is slower than the default.

Without precision `exact`, a row of a batch depends on the other rows for three reasons. First, a matrix product uses
another kernel if the input has very few rows. Second, sums over keys are split at indices that depend on the longest
sequence. Third, SiLU is computed in another way for the last few numbers of a tensor, if they do not fill a vector.

In this file, matrix products always have at least 16 rows. Attention uses blocks of 128 keys, counted from the start of
the sequence. Blocks of keys after the position of a query add exactly zero to the result. SiLU is computed in float64,
and the result is then rounded. The math library still decides whether a matrix product computes each row in the same
way. The function `check_row_invariance` tests the math library of this machine. He et al. 2025 ("Defeating
nondeterminism in LLM inference") use the same method on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schoolhouse.model.decoder import MLP, Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.model.lora import add_low_rank, lora_layers
from schoolhouse.types import SchoolError

_MIN_ROWS, _BLOCK_SIZE = 16, 128

_PROBES = [slice(0, rows) for rows in range(_MIN_ROWS, 36)] + [slice(3, 40), slice(200, 517)]
"""Parts of a batch that are computed alone to check this machine's math library. The check needs many numbers of rows:
a product with a single column (LoRA of rank 1) depends on the batch for 17 to 19 rows, but not for 16 or 20."""


def blocked_attention(q_SHTD: Tensor, k_SKTD: Tensor, v_SKTD: Tensor, start_S: Tensor) -> Tensor:
    """Causal attention in blocks of keys. The result has the shape [S, H, T, D].

    The queries are at the positions start_S, start_S + 1, and so on. The keys start at position 0.
    """
    num_queries, times = q_SHTD.shape[2], q_SHTD.shape[1] // k_SKTD.shape[1]
    q = F.pad(q_SHTD, (0, 0, 0, max(0, 4 - num_queries))) * q_SHTD.shape[-1] ** -0.5
    position_ST = start_S[:, None] + torch.arange(q.shape[2], device=q.device)
    to_whole_blocks = (0, 0, 0, -k_SKTD.shape[2] % _BLOCK_SIZE)
    k, v = (F.pad(x, to_whole_blocks).repeat_interleave(times, dim=1) for x in (k_SKTD, v_SKTD))
    score = torch.cat([q @ block.transpose(-1, -2) for block in k.split(_BLOCK_SIZE, 2)], -1)  # [S, H, T, keys]
    hidden = torch.arange(score.shape[-1], device=q.device) > position_ST[:, :, None]
    weight = score.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
    out = torch.zeros_like(q)
    for weight_block, v_block in zip(weight.split(_BLOCK_SIZE, -1), v.split(_BLOCK_SIZE, 2), strict=True):
        out = out + weight_block @ v_block
    return out[:, :, :num_queries]


class InvariantPackedAttention(PackedAttention):
    """A `PackedAttention` that computes attention in blocks of keys, so that rows do not depend on the batch."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = self.pad(q_NHD), self.pad(k_NKD), self.pad(v_NKD)
        if self.kept_kv is not None:
            self.kept_kv.append((k, v))
        start_S = torch.zeros(self.num_sequences, dtype=torch.long, device=q.device)
        return self.unpad(blocked_attention(q, k, v, start_S))


class InvariantSlotKVCache(SlotKVCache):
    """A `SlotKVCache` in which each query attends to its prompt and its completion as one sequence."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        n, slots, place = q_NHD.shape[0], self._slot_range[: q_NHD.shape[0]], self.lengths[: q_NHD.shape[0]]
        self.keys[layer][slots, :, place] = k_NKD
        self.values[layer][slots, :, place] = v_NKD
        prompt_S = self.prompt_of[:n]
        start_S = self.prompt_length[prompt_S]
        own_ST = start_S[:, None] + torch.arange(self._reach, device=slots.device)
        k = self._join(self.prompt_keys[layer].transpose(-1, -2), self.keys[layer], prompt_S, own_ST)
        v = self._join(self.prompt_values[layer], self.values[layer], prompt_S, own_ST)
        return blocked_attention(q_NHD[:, :, None], k, v, start_S + place)[:, :, 0]

    def _join(self, prompt_PKTD: Tensor, own_SKTD: Tensor, prompt_S: Tensor, own_ST: Tensor) -> Tensor:
        """Join the prompt of each slot with the rows of the slot. Returns [S, K, T, D].

        The rows of the slot are written at the positions `own_ST`, after the prompt.
        """
        joined = F.pad(prompt_PKTD[prompt_S, :, : self._prompt_reach], (0, 0, 0, self._reach))
        own_STKD = own_SKTD[: len(prompt_S), :, : self._reach].transpose(1, 2)
        joined[torch.arange(len(prompt_S), device=own_ST.device)[:, None], :, own_ST] = own_STKD
        return joined


def make_batch_invariant(model: nn.Module) -> None:
    """Make the result of each row of a decoder independent of the other rows of the batch.

    Raises SchoolError if the model or this machine does not allow row-independent results.
    """
    if not isinstance(model, Decoder):
        raise SchoolError(
            "precision `exact` works only for Llama, Qwen2, Qwen3 and Mistral decoders; use precision `float32`, and "
            "watch the metric `logprob_gap`"
        )
    check_row_invariance(model)
    check_adapter_invariance(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            setattr(module, "forward", _with_min_rows(module.forward))  # noqa: B010
        if isinstance(module, MLP):
            module.swiglu = _exact_swiglu


def check_row_invariance(model: nn.Module) -> None:
    """Raise SchoolError if the bits of a row in a matrix product depend on the other rows of the batch.

    Precision `exact` is impossible on a machine where the bits of a row depend on the other rows.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in {tuple(p.shape): p for p in model.parameters() if p.dim() == 2}.values():
        x = torch.randn(517, weight.shape[1], generator=generator).to(weight.device)
        with torch.no_grad():
            whole = F.linear(x, weight)
            for rows in _PROBES:
                if not torch.equal(F.linear(x[rows], weight), whole[rows]):
                    raise SchoolError(
                        "precision `exact` is impossible here: on this machine, the result of a matrix product row "
                        f"depends on the batch (found with weights of shape {list(weight.shape)}); use precision "
                        "`float32`, and watch the metric `logprob_gap`"
                    )


def check_adapter_invariance(model: nn.Module) -> None:
    """Raise SchoolError if the bits of a row in an adapter's product depend on the other rows of the batch."""
    generator = torch.Generator().manual_seed(0)
    for out, rank in {tuple(layer.lora_B.shape) for _, layer in lora_layers(model)}:
        start, low, matrix = (torch.randn(size, generator=generator) for size in ((517, out), (517, rank), (out, rank)))
        whole = add_low_rank(start.clone(), low, matrix, 0.7)
        for rows in _PROBES:
            if not torch.equal(add_low_rank(start[rows].clone(), low[rows], matrix, 0.7), whole[rows]):
                raise SchoolError(
                    f"precision `exact` is impossible here with lora.rank {rank}: on this machine, the result of an "
                    "adapter's product depends on the batch; use another rank, or precision `float32`, and watch the "
                    "metric `logprob_gap`"
                )


def _with_min_rows(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap the forward function of a linear layer, so that its input always has at least 16 rows.

    If the input has fewer rows, rows of zeros are added.
    """

    def padded_forward(input: Tensor) -> Tensor:
        rows = input.shape[-2]
        if rows >= _MIN_ROWS:
            return forward(input)
        return forward(F.pad(input, (0, 0, 0, _MIN_ROWS - rows)))[..., :rows, :]

    return padded_forward


def _exact_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate.double()).float() * up
