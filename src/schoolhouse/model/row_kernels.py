"""Operations on single rows in two forms: a C kernel with its gradient, and torch. The file fused_ops.py chooses one of
the two forms.

In the shapes of tensors, N is the number of tokens of a batch, C the width, H the number of heads, D the head width,
and V the vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.kernel_build import ANY_HEAD_DIM, call_kernel

_ROWS_PER_PART = 64  # rows per partial sum of the weight gradients, so that sums do not depend on the number of threads


def _num_parts(rows: int) -> int:
    return max(1, rows // _ROWS_PER_PART)


def rms_norm_kernel(x_NC: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    inputs = (x_NC.contiguous(), weight_C, eps, dtype)
    return _RMSNorm.apply(*inputs) if torch.is_grad_enabled() else _rms_norm_forward(*inputs)


def _rms_norm_forward(x_NC: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    out = torch.empty_like(x_NC, dtype=dtype)
    call_kernel("rms_norm_forward", ANY_HEAD_DIM, dtype, *x_NC.shape, eps, x_NC, weight_C, out)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_NC, weight_C)
        ctx.eps = eps
        return _rms_norm_forward(x_NC, weight_C, eps, dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        num_parts = _num_parts(len(x))
        grad_x, grad_weight = torch.empty_like(x), x.new_empty(num_parts, len(weight))
        grad_out = grad_outputs[0].contiguous()
        inputs = (*x.shape, ctx.eps, num_parts, x, weight, grad_out)
        call_kernel("rms_norm_backward", ANY_HEAD_DIM, grad_out.dtype, *inputs, grad_x, grad_weight)
        return grad_x, grad_weight.sum(0), None, None


def rms_norm_torch(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x_NC.float(), weight_C.shape, weight_C, eps)


def rotary_kernel(
    x_NHD: Tensor, rotation: tuple[Tensor, Tensor], weight_D: Tensor | None, eps: float, round_output: bool = False
) -> Tensor:
    inputs = (x_NHD.contiguous(), weight_D, *rotation, eps, round_output)
    return _Rotary.apply(*inputs) if torch.is_grad_enabled() else _rotary_forward(*inputs)


def _rotary_forward(
    x_NHD: Tensor, weight_D: Tensor | None, cosine: Tensor, sine: Tensor, eps: float, round_output: bool
) -> Tensor:
    n, heads, head_dim = x_NHD.shape
    out = torch.empty_like(x_NHD, dtype=torch.float32)
    inputs = (n, heads, heads * head_dim, eps, int(round_output), x_NHD, weight_D, cosine, sine)
    call_kernel("rotary_forward", head_dim, x_NHD.dtype, *inputs, out)
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NHD: Tensor, weight_D: Tensor | None, cosine: Tensor, sine: Tensor, eps: float, round_output: bool
    ) -> Tensor:
        ctx.save_for_backward(x_NHD, weight_D, cosine, sine)
        ctx.eps = eps
        return _rotary_forward(x_NHD, weight_D, cosine, sine, eps, round_output)

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


def rotary_torch(
    x_NHD: Tensor, rotation: tuple[Tensor, Tensor], weight_D: Tensor | None, eps: float, round_output: bool = False
) -> Tensor:
    x = x_NHD if weight_D is None else F.rms_norm(x_NHD.float(), weight_D.shape, weight_D, eps)
    (left, right), (cosine, sine) = x.chunk(2, dim=-1), rotation
    rotated = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
    return rotated.to(x_NHD.dtype) if round_output else rotated


def swiglu_kernel(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    inputs = (gate_NC.contiguous(), up_NC.contiguous())
    return _SwiGLU.apply(*inputs) if torch.is_grad_enabled() else _swiglu_forward(*inputs)


def _swiglu_forward(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    out = torch.empty_like(gate_NC)
    call_kernel("swiglu_forward", ANY_HEAD_DIM, out.dtype, out.numel(), gate_NC, up_NC, out)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NC: Tensor, up_NC: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NC, up_NC)
        return _swiglu_forward(gate_NC, up_NC)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        inputs = (up.numel(), gate, up, grad_outputs[0].contiguous())
        call_kernel("swiglu_backward", ANY_HEAD_DIM, up.dtype, *inputs, grad_gate, grad_up)
        return grad_gate, grad_up


def swiglu_torch(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    return F.silu(gate_NC) * up_NC


def logprobs_kernel(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return _LogProbs.apply(logits_NV.contiguous(), token_N.contiguous(), temperature)


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


def logprobs_torch(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = logits_NV.float()
    logprob_NV = (logits_NV if temperature == 1.0 else logits_NV / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprob_NV.exp() * logprob_NV).sum(-1)
    return logprob_NV.gather(1, token_N[:, None])[:, 0], entropy


def sample_kernel(logits_SV: Tensor, uniform_S: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_SV, token_S = logits_SV.contiguous(), torch.empty(len(logits_SV), dtype=torch.long)
    logprob_S, uniform_S = torch.empty(len(logits_SV)), uniform_S.double().contiguous()
    inputs = (*logits_SV.shape, 1.0 / temperature, logits_SV, uniform_S)
    call_kernel("sample_tokens", ANY_HEAD_DIM, logits_SV.dtype, *inputs, token_S, logprob_S)
    return token_S, logprob_S
