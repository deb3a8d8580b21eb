"""LoRA: frozen linear layers, each with two small matrices that are trained (Hu et al. 2021, arXiv 2106.09685).

A layer with the frozen weight W computes x W^T + scale (x A^T) B^T. At the start of training, B is zero, so the adapter
does not change the model. While a policy samples or learns, the product B A is never added to W. For this reason,
sampler and learner compute the same numbers, and a model without its adapter is exactly the base model.

In the shapes of tensors, N is the number of tokens, C the input width of a layer, O its output width, and R the rank.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from schoolhouse.algorithms.settings import Lora
from schoolhouse.randomness import digest
from schoolhouse.types import Key, SchoolError


@dataclass(frozen=True)
class Adapter:
    """The settings of a LoRA adapter and the name of its base model. The matrices of the adapter are stored in the
    layers.

    `modules`: the names of the layers with an adapter, as in the parameter names of Hugging Face.
    `base`: the name of the base model: a path, or a name of the Hugging Face Hub.
    `base_sha256`: the checksum of the base model's weights (`weights_sha256`).
    `base_dtype`: the number type in which the frozen matrices are stored.
    `selection`: the keys of peft that choose the layers, as they were read from a file, such as `target_modules`. It is
        empty for a new adapter.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    base: str
    base_sha256: str
    base_dtype: torch.dtype = torch.float32
    use_rslora: bool = False
    selection: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """The factor of the product B A: alpha / R, or alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class _MixedLinear(torch.autograd.Function):
    """A linear layer whose weight has another number type than its input.

    The backward pass converts the weight again, so that autograd keeps only the stored weight in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OC: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OC)
        return F.linear(x, weight_OC.to(x.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (weight_OC,) = ctx.saved_tensors
        return grad_outputs[0] @ weight_OC.to(grad_outputs[0].dtype), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is not trained. The parameters have the same names as in `nn.Linear`.

    The weight can be stored in bfloat16 while the model computes in float32. If the model computes in bfloat16 and the
    weight is stored in float32, the layer keeps a converted copy, because autocast converts a frozen weight at every
    call.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear would draw random numbers for new weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._copy: tuple[tuple[int, int], Tensor] | None = None

    def base(self, x: Tensor) -> Tensor:
        """Return the product of the input with the frozen weight."""
        device_type = x.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
        if self.weight.dtype == dtype:
            return F.linear(x, self.weight, self.bias)
        if self.weight.dtype == torch.float32:
            return F.linear(x, self._converted(dtype), self.bias)
        return _MixedLinear.apply(x, self.weight, self.bias)

    def _converted(self, dtype: torch.dtype) -> Tensor:
        """A copy of the weight in another number type. The copy is made again after the weight has changed."""
        key = (self.weight._version, self.weight.data_ptr())
        if self._copy is None or self._copy[0] != key or self._copy[1].dtype != dtype:
            self._copy = (key, self.weight.detach().to(dtype))
        return self._copy[1]

    def forward(self, input: Tensor) -> Tensor:
        return self.base(input)


class LoRALinear(FrozenLinear):
    """A frozen linear layer with the trained matrices lora_A [R, C] and lora_B [O, R].

    `enabled`: if False, the layer ignores the trained matrices and uses only the frozen weight.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear)
        weight = linear.weight
        self.lora_A = nn.Parameter(weight.new_zeros(rank, linear.in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(weight.new_zeros(linear.out_features, rank, dtype=torch.float32))
        self.scale, self.enabled = scale, True

    def forward(self, input: Tensor) -> Tensor:
        out = self.base(input)
        if not self.enabled:
            return out
        low = F.linear(input, self.lora_A).flatten(0, -2)
        return add_low_rank(out.flatten(0, -2), low, self.lora_B, self.scale).view_as(out)


def add_low_rank(out_NO: Tensor, low_NR: Tensor, lora_B_OR: Tensor, scale: float) -> Tensor:
    """Add scale x low B^T to `out_NO` in place, because allocating a second tensor of this size takes longer than
    computing."""
    return out_NO.addmm_(low_NR, lora_B_OR.to(out_NO.dtype).t(), alpha=scale)


class FrozenEmbedding(nn.Embedding):
    """An embedding that is stored in bfloat16 and returns rows in float32, the number type of the residual stream."""

    def __init__(self, embedding: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in vars(embedding).items() if not name.startswith("_")})
        self.weight = embedding.weight

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_LINEAR = (nn.Linear, FrozenLinear, LoRALinear)


# --- adding an adapter


def add_adapter(decoder: nn.Module, adapter: Adapter) -> None:
    """Freeze a decoder, and add new matrices A and B, which are zero, to each layer in `adapter.modules`.

    `decoder`: a `Decoder` or an `HFAdapter`. The decoder is changed in place.
    """
    root, wanted = _root(decoder), set(adapter.modules)
    root.requires_grad_(False)
    for name, module in [*root.named_modules()]:
        if type(module) is nn.Linear:
            wide = LoRALinear(module, adapter.rank, adapter.scale) if name in wanted else FrozenLinear(module)
            _replace(root, name, wide)
        elif type(module) is nn.Embedding and adapter.base_dtype != torch.float32:
            _replace(root, name, FrozenEmbedding(module))
    if adapter.base_dtype != torch.float32:
        _convert_base(root, adapter.base_dtype)
    holder: Any = decoder
    holder.lora = adapter


def init_adapter(decoder: nn.Module, seed: int) -> None:
    """Draw random matrices A, which depend only on the seed and on the layer names. The matrices B stay zero.

    The distribution is the same as in peft: uniform between -1 / sqrt(C) and 1 / sqrt(C).
    """
    for name, layer in lora_layers(decoder):
        generator = torch.Generator().manual_seed(digest(Key(seed, f"lora {name}")) % 2**63)
        bound = layer.in_features**-0.5
        drawn = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        layer.lora_A.data.copy_(drawn)
        layer.lora_B.data.zero_()


def target_layers(decoder: nn.Module, targets: str) -> tuple[str, ...]:
    """Return the names of the linear layers for `lora.targets`: all, attention or mlp.

    Raises SchoolError if a block has a matrix outside of a plain `nn.Linear`, because the adapter could not change this
    part of the model.
    """
    for name, module in _blocks(decoder):
        if type(module) not in _LINEAR and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            raise SchoolError(
                f"LoRA needs layers of the type nn.Linear, but the layer `{name}` of this model is a "
                f"{type(module).__name__}: train the model in full (lora.rank 0), or use another model"
            )
    attention = [name for name in linear_layers(decoder) if re.search(r"attn|attention", name.lower())]
    names = {"all": linear_layers(decoder), "attention": attention}.get(targets)
    if names is None:
        names = [name for name in linear_layers(decoder) if name not in attention]
    if not names:
        raise SchoolError(f"this model has no linear layer for lora.targets {targets}: set lora.targets to all")
    return tuple(names)


def linear_layers(decoder: nn.Module) -> list[str]:
    """Return the names of the linear layers in the blocks of a model, without the embedding and the head."""
    return [name for name, module in _blocks(decoder) if type(module) in _LINEAR]


def check_trainable(decoder: nn.Module, lora: Lora) -> None:
    """Raise SchoolError if the trainable parameters are not the parameters that `lora` describes.

    A request for LoRA must not train the whole model, and a request for the whole model must not train an adapter.
    """
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    everything = {name for name, _ in decoder.named_parameters()}
    wanted = {name for name in everything if name.endswith((".lora_A", ".lora_B"))} if lora.rank else everything
    layers = dict(lora_layers(decoder))
    ranks = {layer.lora_A.shape[0] for layer in layers.values()}
    if trained != wanted or ranks != ({lora.rank} if lora.rank else set()):
        raise SchoolError(
            f"lora.rank {lora.rank} asks for {'an adapter' if lora.rank else 'the whole model'}, but "
            f"{len(trained - wanted)} other parameters would be trained, and {len(wanted - trained)} parameters would "
            f"be missing ({sorted(trained ^ wanted)[:3]}, ranks {sorted(ranks)}): this is a fault of the program; "
            "please report it"
        )


def weights_sha256(decoder: nn.Module) -> str:
    """Return a checksum of a decoder's weights, which must be in float32. The checksum does not depend on how the
    weights were stored."""
    hashed = hashlib.sha256()
    for name, parameter in sorted(_root(decoder).named_parameters()):
        hashed.update(f"{name} {list(parameter.shape)}\n".encode())
        hashed.update(memoryview(parameter.detach().cpu().contiguous().numpy()).cast("B"))
    return hashed.hexdigest()


# --- the adapter's tensors


def lora_layers(decoder: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the name and the layer of each linear layer with an adapter."""
    for name, module in _root(decoder).named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def adapter_tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """Return the matrices A and B by name. The tensors share their memory with the decoder."""
    return {
        f"{name}.{matrix}": getattr(layer, matrix).detach()
        for name, layer in lora_layers(decoder)
        for matrix in ("lora_A", "lora_B")
    }


def set_adapter_tensors(decoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the matrices A and B of all layers from `tensors`, which must have the same names and shapes."""
    for name, tensor in adapter_tensors(decoder).items():
        tensor.copy_(tensors[name])


@contextmanager
def other_adapter(decoder: nn.Module, tensors: Mapping[str, Tensor] | None) -> Generator[None]:
    """Inside a `with` block, use other matrices A and B, or no adapter if `tensors` is None.

    Inside the block, the decoder must not be trained.
    """
    layers = [*lora_layers(decoder)]
    kept = [(layer.lora_A.data, layer.lora_B.data) for _, layer in layers]
    matrices = [matrix for _, layer in layers for matrix in (layer.lora_A, layer.lora_B)]
    try:
        for name, layer in layers:
            layer.enabled = tensors is not None
            if tensors is not None:
                layer.lora_A.data, layer.lora_B.data = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
        increment_version(matrices)  # packed weights for sampling are packed again only if a version has changed
        yield
    finally:
        for (_, layer), (a, b) in zip(layers, kept, strict=True):
            layer.enabled, layer.lora_A.data, layer.lora_B.data = True, a, b
        increment_version(matrices)


def share_base(decoder: nn.Module, other: nn.Module) -> None:
    """Let the frozen weights of a decoder share the memory of another decoder's weights where the two are equal."""
    theirs = dict(_root(other).named_parameters())
    for name, parameter in _root(decoder).named_parameters():
        twin = theirs.get(name)
        known = not parameter.requires_grad and twin is not None and parameter.dtype == twin.dtype
        if known and torch.equal(parameter, twin):
            parameter.data = twin.data


@torch.no_grad()
def merge_adapter(decoder: nn.Module) -> None:
    """Replace the frozen weights W by W + scale B A, in float32. Afterwards, the decoder has plain linear layers.

    Raises SchoolError if the decoder has no adapter (any more), or if its base model was rounded.
    """
    holder: Any = decoder
    adapter: Adapter | None = holder.lora
    if adapter is None:
        raise SchoolError("this model has no LoRA adapter to merge; an adapter can be merged only once")
    if adapter.base_dtype != torch.float32:
        raise SchoolError("an adapter is merged into its base model in float32: load the base model in float32")
    root = _root(decoder)
    for name, module in [*root.named_modules()]:
        if isinstance(module, FrozenLinear):
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            plain.weight, plain.bias = module.weight, module.bias
            if isinstance(module, LoRALinear):
                plain.weight.add_(module.lora_B @ module.lora_A, alpha=module.scale)
            _replace(root, name, plain)
    root.requires_grad_(True)
    holder.lora = None


# --- modules


def _root(decoder: nn.Module) -> nn.Module:
    """Return the module with the parameter names of Hugging Face: the decoder, or the model inside an `HFAdapter`."""
    return getattr(decoder, "hf_model", decoder)


def _blocks(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside the blocks of a model. The name of each such module contains the number of its block."""
    return ((name, module) for name, module in _root(decoder).named_modules() if re.search(r"(^|\.)\d+\.", name))


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _convert_base(root: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen matrices in `dtype`. A matrix keeps its number type if another kind of module also uses this
    matrix."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in root.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    for parameter, modules in owners.items():
        frozen = all(isinstance(module, (FrozenLinear, FrozenEmbedding)) for module in modules)
        if frozen and parameter.dim() > 1 and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
