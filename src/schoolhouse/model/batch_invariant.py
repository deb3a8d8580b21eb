"""Exact mode: the sampler computes the same bits as the learner, whatever else is in the batch. Slower, float32.

Three things make a row of a batch depend on its neighbours: matrix products choose another kernel when there are very
few rows; sums over keys are cut where the batch's longest sequence says; silu is computed otherwise at the end of a
tensor, where fewer numbers are left than its vector loop takes. Here products always see at least 16 rows; keys are met
in blocks of 128, counted from the start of the sequence (blocks behind a query add exact zeros); and silu is computed
in double and rounded. That rows of a product are then computed alike is a property of the processor's library:
`prepare` tries it on this machine.
(He et al. 2025, "Defeating nondeterminism in LLM inference", for the same on GPUs.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schoolhouse.model.decoder import MLP, Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.types import SchoolError

_ROWS, _BLOCK = 16, 128


def blocked_attention(q_SHTD: Tensor, k_SKTD: Tensor, v_SKTD: Tensor, start_S: Tensor) -> Tensor:
    """Causal attention of queries at positions start_S, start_S + 1, ... over keys from position 0. [S, H, T, D]"""
    asked, times = q_SHTD.shape[2], q_SHTD.shape[1] // k_SKTD.shape[1]
    q = F.pad(q_SHTD, (0, 0, 0, max(0, 4 - asked))) * q_SHTD.shape[-1] ** -0.5
    position_ST = start_S[:, None] + torch.arange(q.shape[2], device=q.device)
    behind = (0, 0, 0, -k_SKTD.shape[2] % _BLOCK)
    k, v = (F.pad(x, behind).repeat_interleave(times, dim=1) for x in (k_SKTD, v_SKTD))
    score = torch.cat([q @ block.transpose(-1, -2) for block in k.split(_BLOCK, 2)], -1)  # [S, H, T, keys]
    hidden = torch.arange(score.shape[-1], device=q.device) > position_ST[:, :, None]
    weight = score.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
    seen = torch.zeros_like(q)
    for w, block in zip(weight.split(_BLOCK, -1), v.split(_BLOCK, 2), strict=True):
        seen = seen + w @ block
    return seen[:, :, :asked]


class InvariantPackedAttention(PackedAttention):
    """`Packed`, met in blocks."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        q, k, v = self.pad(q_NHD), self.pad(k_NKD), self.pad(v_NKD)
        if self.kept_kv is not None:
            self.kept_kv.append((k, v))
        seen = blocked_attention(q, k, v, torch.zeros(self.num_sequences, dtype=torch.long, device=q.device))
        seen_NHD = seen.transpose(1, 2).reshape(-1, *q_NHD.shape[1:])
        return seen_NHD if self.equal_lengths else seen_NHD[self.padded_place]


class InvariantSlotKVCache(SlotKVCache):
    """`Slots`, but each query meets its prompt and its own words as one sequence."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        n, rows, said = q_NHD.shape[0], self._rows[: q_NHD.shape[0]], self.lengths[: q_NHD.shape[0]]
        self.keys[layer][rows, :, said] = k_NKD
        self.values[layer][rows, :, said] = v_NKD
        prompt_S = self.prompt_of[:n]
        start_S = self.prompt_length[prompt_S]
        own_ST = start_S[:, None] + torch.arange(self._reach, device=rows.device)
        k = self._joined(self.prompt_keys[layer].transpose(-1, -2), self.keys[layer], prompt_S, own_ST)
        v = self._joined(self.prompt_values[layer], self.values[layer], prompt_S, own_ST)
        return blocked_attention(q_NHD[:, :, None], k, v, start_S + said)[:, :, 0]

    def _joined(self, prompt_PKTD: Tensor, own_SKTD: Tensor, prompt_S: Tensor, own_ST: Tensor) -> Tensor:
        joined = F.pad(prompt_PKTD[prompt_S, :, : self._prompt_reach], (0, 0, 0, self._reach))
        joined[torch.arange(len(prompt_S), device=own_ST.device)[:, None], :, own_ST] = own_SKTD[
            : len(prompt_S), :, : self._reach
        ].transpose(1, 2)
        return joined


def make_batch_invariant(model: nn.Module) -> None:
    """Make a decoder's rows independent of one another. Raises SchoolError where that is impossible."""
    if not isinstance(model, Decoder):
        raise SchoolError(
            "precision `exact` is there for Llama, Qwen2, Qwen3 and Mistral decoders alone: use float32 and watch `gap`"
        )
    check_row_invariance(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            setattr(module, "forward", _filled(module.forward))  # noqa: B010
        if isinstance(module, MLP):
            module.swiglu = _gate


def check_row_invariance(model: nn.Module) -> None:
    """Raise SchoolError where a product's rows come out differently in another batch: exactness is impossible there."""
    generator = torch.Generator().manual_seed(0)
    for weight in {tuple(p.shape): p for p in model.parameters() if p.dim() == 2}.values():
        x = torch.randn(517, weight.shape[1], generator=generator).to(weight.device)
        with torch.no_grad():
            whole = F.linear(x, weight)
            for rows in (slice(0, _ROWS), slice(3, 40), slice(200, 517)):
                if not torch.equal(F.linear(x[rows], weight), whole[rows]):
                    raise SchoolError(
                        "precision `exact` is impossible here: this machine's matrix products give a row other bits in "
                        f"another batch (weights of shape {list(weight.shape)}); use float32 and watch `gap`"
                    )


def _filled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A linear layer that sees at least 16 rows: fewer are filled up with zeros."""

    def product(input: Tensor) -> Tensor:
        rows = input.shape[-2]
        return forward(input) if rows >= _ROWS else forward(F.pad(input, (0, 0, 0, _ROWS - rows)))[..., :rows, :]

    return product


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate.double()).float() * up
