"""Logits are float32 inside autocast too, with the gradients of the other layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schoolhouse.model.output_head import Float32Head, float32_logits


def make_head(rows: int = 300, width: int = 32, bias: bool = False) -> nn.Linear:
    """A layer whose weights are bfloat16 numbers and whose logits reach 30, where bfloat16 numbers are .125 apart."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, rows, bias=bias)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator).mul(1.5).bfloat16())
    return head


def hidden_states(count: int = 50, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).bfloat16().float()


def exact(hidden: Tensor, head: nn.Linear) -> Tensor:
    return nn.functional.linear(
        hidden.double(), head.weight.double(), None if head.bias is None else head.bias.double()
    )


def in_bfloat16(hidden: Tensor, head: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return float32_logits(hidden, head)


@pytest.mark.parametrize("bias", [False, True])
def test_logits_inside_autocast_are_float32_products(bias: bool):
    head, hidden = make_head(bias=bias), hidden_states()
    logits = in_bfloat16(hidden, head)
    assert logits.dtype == torch.float32
    assert exact(hidden, head).abs().max() > 16
    assert (logits - exact(hidden, head)).abs().max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert (head(hidden) - exact(hidden, head)).abs().max() > 0.05  # what a layer inside autocast computes


def test_logits_outside_autocast_are_those_of_the_layer_to_the_bit():
    head, hidden = make_head(), torch.randn(50, 32)
    assert torch.equal(float32_logits(hidden, head), head(hidden))


def test_a_weight_stored_in_bfloat16_gives_the_same_logits():
    head, hidden = make_head(rows=9_000), hidden_states(5)
    expected = exact(hidden, head)
    assert (in_bfloat16(hidden, head.bfloat16()) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_float32_up_to_bfloat16_rounding(bias: bool):
    hidden, grads = hidden_states(), []
    for compute in (float32_logits, in_bfloat16):
        head, given = make_head(bias=bias), hidden.clone().requires_grad_()
        compute(given, head).log_softmax(-1)[:, 0].sum().backward()
        grads.append([given.grad, *(weight.grad for weight in head.parameters())])
    for wanted, found in zip(*grads, strict=True):
        assert found.dtype == wanted.dtype
        assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_a_frozen_layer_gets_no_gradient():
    head, hidden = make_head().requires_grad_(False), hidden_states().requires_grad_()
    in_bfloat16(hidden, head).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


class _WithAdapter(nn.Linear):
    """A layer that computes more than x W^T."""

    def __init__(self) -> None:
        super().__init__(32, 300, bias=False)
        self.more = nn.Parameter(torch.randn(300, 32, generator=torch.Generator().manual_seed(2)))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + nn.functional.linear(input, self.more)


def test_a_layer_that_computes_more_keeps_its_own_code():
    head, hidden = _WithAdapter(), hidden_states()
    assert torch.equal(in_bfloat16(hidden, head), head(hidden))
    assert torch.equal(in_bfloat16(hidden, nn.Sequential(head)), head(hidden))


def test_the_module_takes_hidden_states_of_any_shape():
    head, hidden = make_head(), hidden_states(6).view(1, 2, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = Float32Head(head)(hidden)
    assert logits.shape == (1, 2, 3, 300)
    assert (logits - exact(hidden, head)).abs().max() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_logits_on_a_gpu_are_float32_products():
    head, hidden = make_head(), hidden_states().requires_grad_()
    expected = exact(hidden, head)
    with torch.autocast("cuda", torch.bfloat16):
        logits = float32_logits(hidden.cuda(), head.cuda())
    assert logits.dtype == torch.float32
    assert (logits.cpu() - expected).abs().max() < 1e-4
    logits.sum().backward()
    assert hidden.grad is not None


def test_other_products_of_the_process_keep_their_precision():
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    in_bfloat16(hidden_states(), make_head())
    assert mkldnn.matmul.fp32_precision == before
    with pytest.raises(RuntimeError):
        in_bfloat16(hidden_states(width=31), make_head())
    assert mkldnn.matmul.fp32_precision == before
