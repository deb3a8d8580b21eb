"""Precision `exact`: sampler and learner compute the same bits for a row, with any other rows in the batch. This
precision uses float32 and is slower.

Three things make a row of a batch depend on other rows. Matrix products use another kernel if there are very few rows.
Sums over keys are split at indices that depend on the longest sequence. SiLU is computed in another way at the end of a
tensor, if fewer numbers are left than a vector has.

In this file, matrix products always have at least 16 rows. Attention uses blocks of 128 keys, counted from the start of
the sequence; blocks after the position of a query add exact zeros. SiLU is computed in float64 and then rounded. The
math library decides whether products then compute each row in the same way: `check_row_invariance` tests this machine.
(He et al. 2025, "Defeating nondeterminism in LLM inference", do the same on GPUs.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schoolhouse.model.decoder import MLP, Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.types import SchoolError

_MIN_ROWS, _BLOCK_SIZE = 16, 128


def blocked_attention(q_SHTD: Tensor, k_SKTD: Tensor, v_SKTD: Tensor, start_S: Tensor) -> Tensor:
    """Causal attention of queries at positions start_S, start_S + 1, ... over keys from position 0. [S, H, T, D]"""
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
    """`PackedAttention` that uses blocks of keys."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = self.pad(q_NHD), self.pad(k_NKD), self.pad(v_NKD)
        if self.kept_kv is not None:
            self.kept_kv.append((k, v))
        start_S = torch.zeros(self.num_sequences, dtype=torch.long, device=q.device)
        return self.unpad(blocked_attention(q, k, v, start_S))


class InvariantSlotKVCache(SlotKVCache):
    """`SlotKVCache`, but each query attends to its prompt and its slot as one sequence."""

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
        """For each slot, its prompt, and then its own rows at the positions `own_ST`: [S, K, T, D]."""
        joined = F.pad(prompt_PKTD[prompt_S, :, : self._prompt_reach], (0, 0, 0, self._reach))
        own_STKD = own_SKTD[: len(prompt_S), :, : self._reach].transpose(1, 2)
        joined[torch.arange(len(prompt_S), device=own_ST.device)[:, None], :, own_ST] = own_STKD
        return joined


def make_batch_invariant(model: nn.Module) -> None:
    """Make each row that a decoder computes independent of the other rows. Raises SchoolError if this is impossible."""
    if not isinstance(model, Decoder):
        raise SchoolError(
            "precision `exact` works only for Llama, Qwen2, Qwen3 and Mistral decoders: use float32, and watch "
            "`logprob_gap` in the metrics"
        )
    check_row_invariance(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            setattr(module, "forward", _with_min_rows(module.forward))  # noqa: B010
        if isinstance(module, MLP):
            module.swiglu = _exact_swiglu


def check_row_invariance(model: nn.Module) -> None:
    """Raise SchoolError if a row of a matrix product has other bits in another batch: `exact` is then impossible."""
    generator = torch.Generator().manual_seed(0)
    for weight in {tuple(p.shape): p for p in model.parameters() if p.dim() == 2}.values():
        x = torch.randn(517, weight.shape[1], generator=generator).to(weight.device)
        with torch.no_grad():
            whole = F.linear(x, weight)
            for rows in (slice(0, _MIN_ROWS), slice(3, 40), slice(200, 517)):
                if not torch.equal(F.linear(x[rows], weight), whole[rows]):
                    raise SchoolError(
                        "precision `exact` is impossible here: this machine's matrix products give a row other bits in "
                        f"another batch (weights of shape {list(weight.shape)}); use float32, and watch `logprob_gap` "
                        "in the metrics"
                    )


def _with_min_rows(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A linear layer that always gets at least 16 rows. If there are fewer rows, rows of zeros are added."""

    def padded_forward(input: Tensor) -> Tensor:
        rows = input.shape[-2]
        if rows >= _MIN_ROWS:
            return forward(input)
        return forward(F.pad(input, (0, 0, 0, _MIN_ROWS - rows)))[..., :rows, :]

    return padded_forward


def _exact_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate.double()).float() * up
