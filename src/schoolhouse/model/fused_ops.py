"""What a decoder computes of each row alone: norms, rotations, gates, and log-probabilities out of logits.

In one pass each where the kernels can be compiled (policy/kernels), else by torch, operation by operation: a pass over
rows that left the cache costs as much as a small product. Both compute the same, up to rounding.
N tokens of a batch, C width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.kernel_build import ANY_HEAD_DIM, LANES, call_kernel, load_kernels

_ROWS = 64  # rows whose gradients of a weight are summed together: sums do not depend on the number of threads
_KINDS = (torch.float32, torch.bfloat16)


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467), in the number type of products."""
    kind = _of_products(x_NC)
    if x_NC.dtype != torch.float32 or not _native(x_NC, kind):
        return F.rms_norm(x_NC.float(), weight_C.shape, weight_C, eps)
    return _Norm.apply(x_NC.contiguous(), weight_C, eps, kind)


def apply_rotary(
    x_NHD: Tensor, rotation: tuple[Tensor, Tensor], weight_D: Tensor | None, eps: float, rounded: bool = False
) -> Tensor:
    """Heads of queries or keys: normed where there is a weight, then rotated (Su et al. 2021, arXiv 2104.09864).

    Halves convention; `rotation` is cosines and sines, [N, 1, D / 2]. `rounded` to what products made, so that the
    sampler can keep it as that: in float32 all the same where a kernel computes it.
    """
    if _native(x_NHD, x_NHD.dtype, x_NHD.shape[-1]):
        return _Turn.apply(x_NHD.contiguous(), weight_D, *rotation, eps, rounded)
    x = x_NHD if weight_D is None else F.rms_norm(x_NHD.float(), weight_D.shape, weight_D, eps)
    (left, right), (cosine, sine) = x.chunk(2, dim=-1), rotation
    turned = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
    return turned.to(x_NHD.dtype) if rounded else turned


def swiglu(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    """silu(gate) x up (Shazeer 2020, arXiv 2002.05202)."""
    if not _native(gate_NC, gate_NC.dtype):
        return F.silu(gate_NC) * up_NC
    return _Gate.apply(gate_NC.contiguous(), up_NC.contiguous())


def logprobs_and_entropy(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of one token of each row of logits, and the entropy of the row (which has no gradient)."""
    if _native(logits_NV, logits_NV.dtype):
        return _ReadOut.apply(logits_NV.contiguous(), token_N.contiguous(), temperature)
    logprob_NV = (logits_NV.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprob_NV.exp() * logprob_NV).sum(-1)
    return logprob_NV.gather(1, token_N[:, None])[:, 0], entropy


def sample_fused(logits_SV: Tensor, uniform_S: Tensor, temperature: float) -> tuple[Tensor, Tensor] | None:
    """A token of each slot's distribution at this point, and its log-probability; None where there is no kernel."""
    if not _native(logits_SV, logits_SV.dtype):
        return None
    logits_SV, token_S = logits_SV.contiguous(), torch.empty(len(logits_SV), dtype=torch.long)
    logprob_S, uniform_S = torch.empty(len(logits_SV)), uniform_S.double().contiguous()
    given = (*logits_SV.shape, 1.0 / temperature, logits_SV, uniform_S, token_S, logprob_S)
    call_kernel("draw", ANY_HEAD_DIM, logits_SV.dtype, *given)
    return token_S, logprob_S


def _of_products(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _native(x: Tensor, kind: torch.dtype, width: int = ANY_HEAD_DIM) -> bool:
    return x.device.type == "cpu" and kind in _KINDS and width % (2 * LANES) == 0 and load_kernels(width, kind) is not None


def _parts(rows: int) -> int:
    return max(1, rows // _ROWS)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_C: Tensor, eps: float, kind: torch.dtype) -> Tensor:
        out = torch.empty_like(x_NC, dtype=kind)
        ctx.save_for_backward(x_NC, weight_C)
        ctx.eps = eps
        call_kernel("norm", ANY_HEAD_DIM, kind, *x_NC.shape, eps, x_NC, weight_C, out)
        return out

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        parts = _parts(len(x))
        dx, dweight = torch.empty_like(x), x.new_empty(parts, len(weight))
        out = towards[0].contiguous()
        call_kernel("unnorm", ANY_HEAD_DIM, out.dtype, *x.shape, ctx.eps, parts, x, weight, out, dx, dweight)
        return dx, dweight.sum(0), None, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NHD: Tensor, weight_D: Tensor | None, cosine: Tensor, sine: Tensor, eps: float, rounded: bool
    ) -> Tensor:
        n, heads, width = x_NHD.shape
        out = torch.empty_like(x_NHD, dtype=torch.float32)
        ctx.save_for_backward(x_NHD, weight_D, cosine, sine)
        ctx.eps = eps
        given = (n, heads, heads * width, eps, int(rounded), x_NHD, weight_D, cosine, sine)
        call_kernel("turn_heads", width, x_NHD.dtype, *given, out)
        return out

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cosine, sine = ctx.saved_tensors
        n, heads, width = x.shape
        parts = _parts(n)
        dx, dweight = torch.empty_like(x), None if weight is None else cosine.new_empty(parts, width)
        given = (n, heads, heads * width, ctx.eps, parts, x, weight, cosine, sine, towards[0].contiguous())
        call_kernel("unturn_heads", width, x.dtype, *given, dx, dweight)
        return dx, None if dweight is None else dweight.sum(0), None, None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NC: Tensor, up_NC: Tensor) -> Tensor:
        out = torch.empty_like(gate_NC)
        ctx.save_for_backward(gate_NC, up_NC)
        call_kernel("open_gate", ANY_HEAD_DIM, out.dtype, out.numel(), gate_NC, up_NC, out)
        return out

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        opening, up = ctx.saved_tensors
        gradients = torch.empty_like(opening), torch.empty_like(up)
        given = (up.numel(), opening, up, towards[0].contiguous())
        call_kernel("unopen_gate", ANY_HEAD_DIM, up.dtype, *given, *gradients)
        return gradients


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        results = [torch.empty(len(token_N)) for _ in range(3)]
        ctx.scale = 1.0 / temperature
        ctx.save_for_backward(logits_NV, token_N, results[2])
        call_kernel("read_out", ANY_HEAD_DIM, logits_NV.dtype, *logits_NV.shape, ctx.scale, logits_NV, token_N, *results)
        ctx.mark_non_differentiable(results[1])
        return results[0], results[1]

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        logits, token, spread = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        given = (*logits.shape, ctx.scale, logits, token, spread, towards[0].contiguous())
        call_kernel("unread", ANY_HEAD_DIM, logits.dtype, *given, gradient)
        return gradient, None, None
