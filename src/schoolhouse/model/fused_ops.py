"""Operations on single rows, such as RMSNorm, rotary embedding, SwiGLU, log-probabilities and sampling from logits.

If the C kernels (model/kernels) can be compiled, each operation reads its input from memory once. Without C kernels,
torch reads the input several times. If the rows are no longer in the processor cache, each further pass over them takes
as long as a small matrix product. The C kernels and torch give the same results, except for rounding.

In the shapes of tensors, N is the number of tokens of a batch, C the width, H the number of heads, D the head width,
and V the vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.kernel_build import ANY_HEAD_DIM, LANES, call_kernel, load_kernels

_ROWS_PER_PART = 64  # rows whose weight gradients are summed together, so sums do not depend on the threads
_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Apply the root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

    The result has the dtype of the matrix products.
    """
    dtype = _matmul_dtype(x_NC)
    if x_NC.dtype != torch.float32 or not _has_kernel(x_NC, dtype):
        return F.rms_norm(x_NC.float(), weight_C.shape, weight_C, eps)
    return _RMSNorm.apply(x_NC.contiguous(), weight_C, eps, dtype)


def apply_rotary(
    x_NHD: Tensor, rotation: tuple[Tensor, Tensor], weight_D: Tensor | None, eps: float, round_output: bool = False
) -> Tensor:
    """Apply the rotary embedding to the heads of queries or keys (Su et al. 2021, arXiv 2104.09864).

    If `weight_D` is given, RMSNorm is applied first. Dimension i of the first half of a head is paired with dimension i
    of the second half, as in Hugging Face models. The argument `rotation` contains the cosines and the sines, each of
    shape [N, 1, D / 2]. With `round_output`, the result is rounded to the dtype of x, so that the KV cache stores keys
    without further rounding. A kernel always returns a float32 tensor.
    """
    if _has_kernel(x_NHD, x_NHD.dtype, x_NHD.shape[-1]):
        return _Rotary.apply(x_NHD.contiguous(), weight_D, *rotation, eps, round_output)
    x = x_NHD if weight_D is None else F.rms_norm(x_NHD.float(), weight_D.shape, weight_D, eps)
    (left, right), (cosine, sine) = x.chunk(2, dim=-1), rotation
    rotated = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
    return rotated.to(x_NHD.dtype) if round_output else rotated


def swiglu(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    """Compute the SwiGLU activation, silu(gate) x up (Shazeer 2020, arXiv 2002.05202)."""
    if not _has_kernel(gate_NC, gate_NC.dtype):
        return F.silu(gate_NC) * up_NC
    return _SwiGLU.apply(gate_NC.contiguous(), up_NC.contiguous())


def logprobs_and_entropy(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of one token per row of logits, and the entropy of each row (without gradient)."""
    if _has_kernel(logits_NV, logits_NV.dtype):
        return _LogProbs.apply(logits_NV.contiguous(), token_N.contiguous(), temperature)
    logprob_NV = (logits_NV.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprob_NV.exp() * logprob_NV).sum(-1)
    return logprob_NV.gather(1, token_N[:, None])[:, 0], entropy


def sample_fused(logits_SV: Tensor, uniform_S: Tensor, temperature: float) -> tuple[Tensor, Tensor] | None:
    """Sample one token per row of logits with a uniform random number. Returns the tokens and their log-probabilities.

    Returns None if there is no kernel.
    """
    if not _has_kernel(logits_SV, logits_SV.dtype):
        return None
    logits_SV, token_S = logits_SV.contiguous(), torch.empty(len(logits_SV), dtype=torch.long)
    logprob_S, uniform_S = torch.empty(len(logits_SV)), uniform_S.double().contiguous()
    inputs = (*logits_SV.shape, 1.0 / temperature, logits_SV, uniform_S)
    call_kernel("sample_tokens", ANY_HEAD_DIM, logits_SV.dtype, *inputs, token_S, logprob_S)
    return token_S, logprob_S


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: the autocast dtype if autocast is on, otherwise the dtype of x."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def _has_kernel(x: Tensor, dtype: torch.dtype, head_dim: int = ANY_HEAD_DIM) -> bool:
    supported = x.device.type == "cpu" and dtype in _KERNEL_DTYPES and head_dim % (2 * LANES) == 0
    return supported and load_kernels(head_dim, dtype) is not None


def _num_parts(rows: int) -> int:
    return max(1, rows // _ROWS_PER_PART)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x_NC, dtype=dtype)
        ctx.save_for_backward(x_NC, weight_C)
        ctx.eps = eps
        call_kernel("rms_norm_forward", ANY_HEAD_DIM, dtype, *x_NC.shape, eps, x_NC, weight_C, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        num_parts = _num_parts(len(x))
        grad_x, grad_weight = torch.empty_like(x), x.new_empty(num_parts, len(weight))
        grad_out = grad_outputs[0].contiguous()
        inputs = (*x.shape, ctx.eps, num_parts, x, weight, grad_out)
        call_kernel("rms_norm_backward", ANY_HEAD_DIM, grad_out.dtype, *inputs, grad_x, grad_weight)
        return grad_x, grad_weight.sum(0), None, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NHD: Tensor, weight_D: Tensor | None, cosine: Tensor, sine: Tensor, eps: float, round_output: bool
    ) -> Tensor:
        n, heads, head_dim = x_NHD.shape
        out = torch.empty_like(x_NHD, dtype=torch.float32)
        ctx.save_for_backward(x_NHD, weight_D, cosine, sine)
        ctx.eps = eps
        inputs = (n, heads, heads * head_dim, eps, int(round_output), x_NHD, weight_D, cosine, sine)
        call_kernel("rotary_forward", head_dim, x_NHD.dtype, *inputs, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cosine, sine = ctx.saved_tensors
        n, heads, head_dim = x.shape
        num_parts = _num_parts(n)
        grad_x, grad_weight = torch.empty_like(x), None if weight is None else cosine.new_empty(num_parts, head_dim)
        grad_out = grad_outputs[0].contiguous()
        inputs = (n, heads, heads * head_dim, ctx.eps, num_parts, x, weight, cosine, sine, grad_out)
        call_kernel("rotary_backward", head_dim, x.dtype, *inputs, grad_x, grad_weight)
        return grad_x, None if grad_weight is None else grad_weight.sum(0), None, None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NC: Tensor, up_NC: Tensor) -> Tensor:
        out = torch.empty_like(gate_NC)
        ctx.save_for_backward(gate_NC, up_NC)
        call_kernel("swiglu_forward", ANY_HEAD_DIM, out.dtype, out.numel(), gate_NC, up_NC, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        inputs = (up.numel(), gate, up, grad_outputs[0].contiguous())
        call_kernel("swiglu_backward", ANY_HEAD_DIM, up.dtype, *inputs, grad_gate, grad_up)
        return grad_gate, grad_up


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprob, entropy, logsumexp = (torch.empty(len(token_N)) for _ in range(3))
        ctx.scale = 1.0 / temperature
        ctx.save_for_backward(logits_NV, token_N, logsumexp)
        inputs = (*logits_NV.shape, ctx.scale, logits_NV, token_N)
        call_kernel("logprobs_forward", ANY_HEAD_DIM, logits_NV.dtype, *inputs, logprob, entropy, logsumexp)
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        logits, token, logsumexp = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        inputs = (*logits.shape, ctx.scale, logits, token, logsumexp, grad_outputs[0].contiguous())
        call_kernel("logprobs_backward", ANY_HEAD_DIM, logits.dtype, *inputs, grad_logits)
        return grad_logits, None, None
