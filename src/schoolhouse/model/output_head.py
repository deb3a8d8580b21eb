"""Compute logits in float32, even if the other matrix products of a model run in bfloat16.

A bfloat16 number has 8 significant bits. Logits between 16 and 32 in bfloat16 are multiples of 0.125, so the
log-probabilities of such logits have rounding errors of several percent. Such rounding errors are larger than the
change of a log-probability by one update. For this reason, MiniMax-M1 (arXiv 2506.13585) and ScaleRL (arXiv 2510.13786)
compute logits in float32.

In the shapes of tensors, N is the number of tokens, C the width of the model, and V the vocabulary size.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PART_ROWS = 4_096  # rows of a bfloat16 weight that are converted together: they stay in the processor cache


def float32_logits(hidden_NC: Tensor, head: nn.Module) -> Tensor:
    """Compute the logits [N, V] in float32 from hidden states, inside or outside of autocast.

    Without autocast, the result for float32 hidden states has the same bits as `head(hidden_NC)`. With autocast, hidden
    states are rounded to the autocast dtype as usual, but the product and its sum are float32. The backward pass runs
    in the autocast dtype, as in other layers.

    `head`: the output layer. A layer that computes more than x W^T + b runs in float32 in both passes.
    """
    device_type = hidden_NC.device.type
    if not torch.is_autocast_enabled(device_type):
        return head(hidden_NC)
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        if isinstance(head, nn.Linear) and {name for name, _ in head.named_parameters()} <= {"weight", "bias"}:
            logits_NV = _Float32Product.apply(hidden_NC.to(dtype), head.weight)
            return logits_NV if head.bias is None else logits_NV + head.bias.float()
        return head(hidden_NC.float())


class Float32Head(nn.Module):
    """A module that computes `float32_logits` with the output layer of a model."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return float32_logits(hidden.flatten(0, -2), self.head).unflatten(0, hidden.shape[:-1])


class _Float32Product(torch.autograd.Function):
    """The float32 product of bfloat16 hidden states and a weight."""

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_NC, weight_VC)
        if hidden_NC.is_cuda:
            return torch.mm(hidden_NC, weight_VC.to(hidden_NC.dtype).t(), out_dtype=torch.float32)
        hidden_NC = hidden_NC.float()
        with _bfloat16_products():
            if weight_VC.dtype == torch.float32:
                return F.linear(hidden_NC, weight_VC)
            return torch.cat([F.linear(hidden_NC, part.float()) for part in weight_VC.split(_PART_ROWS)], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_NC, weight_VC = ctx.saved_tensors
        grad_NV, (needs_hidden, needs_weight) = grad_outputs[0].to(hidden_NC.dtype), ctx.needs_input_grad
        grad_hidden = grad_NV @ weight_VC.to(hidden_NC.dtype) if needs_hidden else None
        grad_weight = (grad_NV.t() @ hidden_NC).to(weight_VC.dtype) if needs_weight else None
        return grad_hidden, grad_weight


@contextmanager
def _bfloat16_products() -> Generator[None]:
    """Let oneDNN compute float32 matrix products on a CPU with bfloat16 factors and float32 sums, if the processor can.

    On a CPU, torch cannot multiply bfloat16 matrices with a float32 result. With the setting `fp32_precision`, the AMX
    units of a processor round float32 matrices to bfloat16. On a processor without AMX, the product is an ordinary
    float32 product.
    """
    mkldnn: Any = torch.backends.mkldnn
    settings = mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
