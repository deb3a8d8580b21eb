"""Packed layers compute what torch computes, no row depends on another, and changed weights are packed again."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from schoolhouse.model.packed_linear import can_pack, pack

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
ERROR = {"float32": 1e-6, "bfloat16": 5e-3, "int8": 1e-2}
"""The largest error of the sum of squares, relative to that of the result."""


def error(result, expected):
    return float(((result - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("type", ERROR)
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 12, 13, 40])
def test_a_packed_layer_equals_the_layer(type, rows):
    torch.manual_seed(0)
    linear, x = nn.Linear(92, 75), torch.randn(rows, 92)
    packed = pack([linear], type)
    assert error(packed(x), linear(x)) < ERROR[type]
    y = torch.randn(rows, 75)
    expected = y + linear(x)
    assert packed(x, add_to=y) is y
    assert error(y, expected) < ERROR[type]


@pytest.mark.parametrize("type", ERROR)
def test_norm_and_swiglu_are_applied_to_the_input(type):
    torch.manual_seed(0)
    linear, norm, x = nn.Linear(92, 40, bias=False), torch.rand(92), torch.randn(5, 184)
    packed = pack([linear], type)
    normed = F.rms_norm(x[:, :92], (92,), norm, 1e-5)
    assert error(packed(x[:, :92].contiguous(), input="norm", norm_C=norm, eps=1e-5), linear(normed)) < ERROR[type]
    activated = F.silu(x[:, :92]) * x[:, 92:]
    assert error(packed(x, input="swiglu"), linear(activated)) < ERROR[type]


@pytest.mark.parametrize("type", ERROR)
def test_no_row_depends_on_another(type):
    torch.manual_seed(0)
    packed, x = pack([nn.Linear(64, 70)], type), torch.randn(31, 64)
    assert torch.equal(torch.cat([packed(row[None]) for row in x]), packed(x))


@pytest.mark.parametrize("type", ERROR)
def test_layers_with_one_input_are_packed_together(type):
    torch.manual_seed(0)
    linears, x = [nn.Linear(32, size) for size in (48, 16, 16)], torch.randn(4, 32)
    assert error(pack(linears, type)(x), torch.cat([linear(x) for linear in linears], 1)) < ERROR[type]


def test_weights_are_packed_again_after_a_change_and_not_before():
    linear, x = nn.Linear(16, 16), torch.randn(2, 16)
    packed = pack([linear], "float32")
    assert pack([linear], "float32", packed) is packed
    with torch.no_grad():
        linear.weight.mul_(2)
    again = pack([linear], "float32", packed)
    assert again is not packed
    assert error(again(x), linear(x)) < 1e-6


class LowRank(nn.Linear):
    """A frozen layer with an adapter, as in LoRA."""

    def __init__(self, inputs, outputs, rank, scale):
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.randn(outputs, rank))
        self.scale, self.enabled = scale, True

    def forward(self, input):
        out = super().forward(input)
        return out + self.scale * input @ self.lora_A.t() @ self.lora_B.t() if self.enabled else out


@pytest.mark.parametrize("rank", [1, 8])
def test_adapters_are_computed_beside_the_packed_layer(rank):
    torch.manual_seed(0)
    adapted = LowRank(32, 24, rank, 0.5)
    linears = [adapted, nn.Linear(32, 8), LowRank(32, 16, rank, 2.0)]
    x = torch.randn(3, 32)
    packed = pack(linears, "float32")
    assert error(packed(x), torch.cat([linear(x) for linear in linears], 1)) < 1e-6
    base = packed.packed
    with torch.no_grad():
        adapted.lora_B.zero_()
    packed = pack(linears, "float32", packed)
    assert packed.packed is base, "the frozen weights were packed again"
    assert error(packed(x), torch.cat([linear(x) for linear in linears], 1)) < 1e-6
    for linear in linears:
        vars(linear)["enabled"] = False
    assert error(pack(linears, "float32", packed)(x), torch.cat([linear(x) for linear in linears], 1)) < 1e-6


def test_a_layer_that_other_code_changes_cannot_be_packed():
    linear = nn.Linear(16, 16)
    assert can_pack(linear)
    linear.register_forward_hook(lambda *_: None)
    assert not can_pack(linear)
    assert not can_pack(nn.Linear(15, 16))
