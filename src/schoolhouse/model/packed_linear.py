"""Linear layers whose weights are packed once, for many products with few rows (kernels/packed_linear.c).

A decode step multiplies a few rows by every weight of the model. The time of a decode step is the time to read the
weights from memory. The libraries that torch calls rearrange the weights in each product, or read the weights at less
than the memory's speed. Packed weights are stored in the order in which the kernel reads them, as float32, bfloat16 or
int8 (with one scale for 32 weights of an output). The bits of a result row do not depend on the other rows.

In the shapes of tensors, N is the number of rows, C the input width, O the output width, and R the rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from schoolhouse.model.kernel_build import ANY_HEAD_DIM, call_kernel, load_kernels

WeightType = Literal["float32", "bfloat16", "int8"]

_TYPES: dict[WeightType, int] = {"float32": 0, "bfloat16": 1, "int8": 2}
"""The integer that stands for each type in the kernel."""

BYTES_PER_WEIGHT: dict[WeightType, float] = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.125}
"""The memory of one packed weight, in bytes. With int8, 32 weights share one float32 scale."""

_INPUTS = {"plain": 0, "norm": 1, "swiglu": 2}
_ALIGNED_OUTPUTS = 32
_STEP = 4  # the kernel multiplies this many inputs at a time
_SCALED = 32  # inputs that share a scale in int8

Versions = tuple[tuple[int, int], ...]


@dataclass
class PackedLinear:
    """One or more linear layers with the same input, packed as one layer with all their outputs.

    `low_rank` holds the packed matrices A and B of LoRA adapters; B contains the scales of the adapters.
    """

    type: WeightType
    in_features: int
    out_features: int
    packed: Tensor
    bias: Tensor | None  # [O]
    versions: Versions
    low_rank: tuple[PackedLinear, PackedLinear] | None = None

    def __call__(
        self,
        x: Tensor,
        *,
        input: Literal["plain", "norm", "swiglu"] = "plain",
        norm_C: Tensor | None = None,
        eps: float = 0.0,
        add_to: Tensor | None = None,
    ) -> Tensor:
        """Compute f(x) W^T + bias in float32, [N, O]. If `add_to` [N, O] is given, add the result to that tensor.

        `input`: the function f is the identity, RMSNorm with the weight `norm_C`, or SwiGLU. For SwiGLU, the rows of x
        are [gates, ups].
        """
        y = torch.empty(len(x), self.out_features) if add_to is None else add_to
        sizes = (
            _TYPES[self.type],
            _INPUTS[input],
            len(x),
            self.out_features,
            self.in_features,
            int(add_to is not None),
            eps,
        )
        tensors = (x, norm_C, self.packed, self.bias, y)
        call_kernel("packed_linear", ANY_HEAD_DIM, torch.float32, *sizes, *tensors)
        if self.low_rank:
            down, up = self.low_rank
            up(down(x, input=input, norm_C=norm_C, eps=eps), add_to=y)
        return y

    def fields(self) -> list[int]:
        """The fields of the struct `Linear` of the kernels (team.h). The addresses are those of the tensors here."""
        low, high = self.low_rank or (None, None)
        bias = self.bias.data_ptr() if self.bias is not None else 0
        sizes = [_TYPES[self.type], self.in_features, self.out_features, low.out_features if low else 0]
        return [*sizes, self.packed.data_ptr(), bias, *(part.packed.data_ptr() if part else 0 for part in (low, high))]


def can_pack(linear: nn.Module) -> bool:
    """Return whether a layer computes only x W^T + bias, with or without a LoRA adapter."""
    plain = isinstance(linear, nn.Linear) and "forward" not in vars(linear)
    return plain and not linear._forward_hooks and not linear._forward_pre_hooks and linear.in_features % _STEP == 0


def weight_versions(linears: Sequence[nn.Module]) -> Versions:
    """The address of each parameter of the layers, and how often the parameter was changed. If two versions are equal,
    the weights are equal."""
    return tuple((p.data_ptr(), p._version) for linear in linears for p in linear.parameters())


@torch.no_grad()
def pack(linears: Sequence[nn.Linear], type: WeightType, old: PackedLinear | None = None) -> PackedLinear:
    """Pack layers with the same input as one layer. Returns `old` if the weights have not changed since `old` was made.

    The matrices of a LoRA adapter are packed separately, in float32, because rounding W + B A would lose a small B A.
    """
    base = [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
    versions = tuple((p.data_ptr(), p._version) for p in base)
    if old is None or old.type != type or old.versions != versions:
        old = _pack_matrix(torch.cat([linear.weight.float() for linear in linears]), type, versions)
        if linears[0].bias is not None:
            old.bias = torch.cat([linear.bias.float() for linear in linears])
    old.low_rank = _pack_low_rank(linears, old.low_rank)
    return old


def _pack_matrix(weight_OC: Tensor, type: WeightType, versions: Versions = ()) -> PackedLinear:
    out_features, in_features = weight_OC.shape
    rows = -(-out_features // _ALIGNED_OUTPUTS) * _ALIGNED_OUTPUTS
    bytes_per_output = packed_bytes(type, in_features)
    packed = torch.empty(rows * bytes_per_output, dtype=torch.uint8)
    arguments = (_TYPES[type], out_features, in_features, weight_OC.contiguous(), packed)
    call_kernel("pack_weight", ANY_HEAD_DIM, torch.float32, *arguments)
    return PackedLinear(type, in_features, out_features, packed, None, versions)


def _pack_low_rank(
    linears: Sequence[nn.Linear], old: tuple[PackedLinear, PackedLinear] | None
) -> tuple[PackedLinear, PackedLinear] | None:
    """Pack the LoRA adapters of layers with the same input. The matrices A are concatenated, and the matrices B become
    diagonal blocks."""
    adapters = [_adapter(linear) for linear in linears]
    adapted = [adapter for adapter in adapters if adapter]
    if not adapted:
        return None
    versions = tuple((matrix.data_ptr(), matrix._version) for a, b, _ in adapted for matrix in (a, b))
    if old is not None and old[0].versions == versions:
        return old
    a_RC = torch.cat([a.float() for a, _, _ in adapted])
    blocks = [
        adapter[1].float() * adapter[2] if adapter else torch.zeros(linear.out_features, 0)
        for linear, adapter in zip(linears, adapters, strict=True)
    ]
    b_OR = torch.block_diag(*blocks)
    unused = -len(a_RC) % _STEP
    a_RC, b_OR = nn.functional.pad(a_RC, (0, 0, 0, unused)), nn.functional.pad(b_OR, (0, unused))
    return _pack_matrix(a_RC, "float32", versions), _pack_matrix(b_OR, "float32", versions)


def _adapter(linear: nn.Linear) -> tuple[Tensor, Tensor, float] | None:
    """The matrices A [R, C] and B [O, R] of a LoRA layer, and the factor of their product."""
    a, b, scale = (getattr(linear, name, None) for name in ("lora_A", "lora_B", "scale"))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not isinstance(scale, float):
        return None
    return (a, b, scale) if getattr(linear, "enabled", True) else None


def packed_bytes(type: WeightType, in_features: int) -> int:
    """The memory of the packed weights of one output, in bytes."""
    if type == "int8":
        return in_features + 4 * -(-in_features // _SCALED)
    return in_features * (4 if type == "float32" else 2)


def has_packed_kernel(device: torch.device) -> bool:
    """Return whether packed products can be computed on this device."""
    return device.type == "cpu" and load_kernels(ANY_HEAD_DIM, torch.float32) is not None
