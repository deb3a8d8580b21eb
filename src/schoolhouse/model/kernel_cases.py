"""Inputs for each C kernel, with torch code that computes the same results, to check the kernels and compare the
speeds.

The torch code uses the fastest functions of torch, such as scaled_dot_product_attention and F.rms_norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from schoolhouse.model import row_kernels
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.model.native_attention import NativeBfloat16SlotKVCache, NativePackedAttention, NativeSlotKVCache
from schoolhouse.model.packed_linear import BYTES_PER_WEIGHT, WeightType, pack

Run = Callable[[], Sequence[Tensor]]


class Case(NamedTuple):
    """One computation by a C kernel and by torch, on the same inputs. `size` describes the inputs."""

    kernel: str
    size: str
    native: Run
    torch: Run


def packed_attention(lengths: Sequence[int], heads: int, kv_heads: int, head_dim: int) -> Case:
    """Causal attention of sequences with these lengths, and its gradient, in float32."""
    rows = [(sum(lengths), h, head_dim) for h in (heads, kv_heads, kv_heads)]
    inputs = [_random(shape, i).requires_grad_() for i, shape in enumerate(rows)]
    grad_out = _random(rows[0], 3)
    contexts = [each(lengths) for each in (NativePackedAttention, PackedAttention)]
    native, plain = (_with_gradients(lambda *x, c=context: c.attend(0, *x), inputs, grad_out) for context in contexts)
    return Case("packed attention", f"{_sequences(lengths)}, {heads} heads of {head_dim}", native, plain)


def decode_attention(
    prompts: int, samples: int, prompt_len: int, own_len: int, heads: int, kv_heads: int, head_dim: int,
    dtype: torch.dtype,
) -> Case:  # fmt: skip
    """One decode step of `samples` slots for each of the prompts. Each slot has `own_len` tokens after its prompt."""
    native_class = NativeBfloat16SlotKVCache if dtype == torch.bfloat16 else NativeSlotKVCache
    kv_shape, num_slots = (prompts * prompt_len, kv_heads, head_dim), prompts * samples
    runs = []
    for cache_class in (native_class, SlotKVCache):
        cache = cache_class(1, num_slots, kv_heads, head_dim, prompt_len, own_len + 1)
        packed = PackedAttention([prompt_len] * prompts)
        keys, values = (packed.pad(_random(kv_shape, seed).to(dtype)) for seed in (0, 1))
        packed.kept_kv = [(keys, values)]
        cache.store_prompts(packed, range(prompts))
        cache.admit([prompt for prompt in range(prompts) for _ in range(samples)])
        q, k, v = (
            _random((num_slots, h, head_dim), seed).to(dtype) for seed, h in ((2, heads), (3, kv_heads), (4, kv_heads))
        )
        for step in range(own_len):
            cache.begin_step()
            cache.attend(0, q, k.roll(step, 0), v.roll(step, 0))
            cache.end_step()
        cache.begin_step()
        runs.append(lambda cache=cache, x=(q, k, v): [cache.attend(0, *x)])
    size = f"{prompts} x {samples} slots, {prompt_len} + {own_len} tokens, {heads} heads of {head_dim}"
    return Case("decode attention", size, *runs)


def rms_norm(rows: int, width: int, dtype: torch.dtype) -> Case:
    x, weight = _random((rows, width), 0).requires_grad_(), _random((width,), 1).requires_grad_()
    grad_out = _random((rows, width), 2).to(dtype)
    native = _with_gradients(lambda x, w: row_kernels.rms_norm_kernel(x, w, 1e-6, dtype), [x, weight], grad_out)
    plain = _with_gradients(lambda x, w: row_kernels.rms_norm_torch(x, w, 1e-6).to(dtype), [x, weight], grad_out)
    return Case("RMSNorm", f"{rows} x {width}", native, plain)


def rotary(rows: int, heads: int, head_dim: int, dtype: torch.dtype, with_norm: bool = False) -> Case:
    x, angle = _random((rows, heads, head_dim), 0).to(dtype).requires_grad_(), 3 * _random((rows, 1, head_dim // 2), 1)
    rotation = (angle.cos(), angle.sin())
    grad_out, weight = _random((rows, heads, head_dim), 2), [_random((head_dim,), 3).requires_grad_()] * with_norm

    def native(x: Tensor, *weight: Tensor) -> Tensor:
        return row_kernels.rotary_kernel(x, rotation, weight[0] if weight else None, 1e-6)

    def plain(x: Tensor, *weight: Tensor) -> Tensor:
        return row_kernels.rotary_torch(x, rotation, weight[0] if weight else None, 1e-6)

    runs = (_with_gradients(run, [x, *weight], grad_out) for run in (native, plain))
    return Case("rotary embedding", f"{rows} x {heads} heads of {head_dim}{' with norm' * with_norm}", *runs)


def swiglu(rows: int, width: int, dtype: torch.dtype) -> Case:
    inputs = [(2 * _random((rows, width), seed)).to(dtype).requires_grad_() for seed in (0, 1)]
    grad_out = _random((rows, width), 2).to(dtype)
    runs = (_with_gradients(run, inputs, grad_out) for run in (row_kernels.swiglu_kernel, row_kernels.swiglu_torch))
    return Case("SwiGLU", f"{rows} x {width}", *runs)


def logprobs(rows: int, vocab: int, dtype: torch.dtype) -> Case:
    """The log-probability of a token, its gradient, and the entropy."""
    logits = (2 * _random((rows, vocab), 0)).to(dtype).requires_grad_()
    token, grad_out = torch.arange(rows) * 7 % vocab, _random((rows,), 1)

    def runner(function: Callable[..., tuple[Tensor, Tensor]]) -> Run:
        def run() -> Sequence[Tensor]:
            logprob, entropy = function(logits, token, 0.8)
            return [logprob, entropy, *torch.autograd.grad(logprob, [logits], grad_out)]

        return run

    runs = (runner(function) for function in (row_kernels.logprobs_kernel, row_kernels.logprobs_torch))
    return Case("log-probabilities", f"{rows} x {vocab}", *runs)


def sampling(rows: int, vocab: int, dtype: torch.dtype) -> Case:
    """One token for each row of logits, and its log-probability. Torch adds up all probabilities of a row."""
    logits = (2 * _random((rows, vocab), 0)).to(dtype)
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def plain() -> Sequence[Tensor]:
        logprob = (logits.float() / 0.8).log_softmax(-1)
        cumulative = logprob.exp().cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        return [token[:, 0], logprob.gather(1, token)[:, 0]]

    size = f"{rows} x {vocab}"
    return Case("sampling", size, lambda: row_kernels.sample_kernel(logits, uniform, 0.8), plain)


def packed_product(rows: int, out: int, width: int, type: WeightType) -> Case:
    """Rows times packed weights. Weights and inputs are numbers that every type of packed weights holds without loss.

    With int8, 32 weights share a scale. One weight of each 32 is 127, so the scale is 1.
    """
    linear = nn.Linear(width, out)
    with torch.no_grad():
        linear.weight.copy_((40 * _random((out, width), 0)).round().clamp(-127, 127))
        linear.weight[:, ::32] = 127
    packed, x = pack([linear], type), _random((rows, width), 1).bfloat16().float()

    def plain() -> Sequence[Tensor]:
        with torch.no_grad():
            return [linear(x)]

    return Case("packed product", f"{rows} x {width} to {out} in {type}", lambda: [packed(x)], plain)


def _random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_out: Tensor) -> Run:
    """Compute a function and its gradients. For a single row, as in a step of sampling, no gradients are computed."""

    def run() -> Sequence[Tensor]:
        if len(grad_out) == 1:
            with torch.no_grad():
                return [function(*inputs)]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad_out)]

    return run


def _sequences(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} x {lengths[0]} tokens" if len(set(lengths)) == 1 else f"{len(lengths)} sequences"


def check_cases(kernel: str, head_dim: int, dtype: torch.dtype) -> list[Case]:
    """Return small inputs with rows that do not fill whole vectors, to check the results of a kernel."""
    match kernel:
        case "packed attention":
            return [packed_attention([70, 5, 33, 1], 4, 2, head_dim)]
        case "decode attention":
            return [decode_attention(3, 5, 45, 19, 4, 2, head_dim, dtype)]
        case "RMSNorm":
            return [rms_norm(70, 83, dtype)]
        case "rotary embedding":
            return [rotary(70, 3, head_dim, dtype, with_norm) for with_norm in (False, True)]
        case "SwiGLU":
            return [swiglu(9, 83, dtype)]
        case "packed product":
            return [packed_product(rows, 75, 92, type) for type in BYTES_PER_WEIGHT for rows in (1, 2, 13, 40)]
        case _:
            return [logprobs(40, 333, dtype), sampling(200, 333, dtype)]


def timing_cases(kernel: str, head_dim: int, dtype: torch.dtype) -> list[Case]:
    """Return inputs that take a few milliseconds, as in a training step of a small model."""
    match kernel:
        case "packed attention":
            return [packed_attention([160, 96, 128], 4, 2, head_dim)]
        case "decode attention":
            return [decode_attention(4, 8, 128, 24, 4, 2, head_dim, dtype)]
        case "RMSNorm":
            return [rms_norm(1024, 256, dtype)]
        case "rotary embedding":
            return [rotary(512, 4, head_dim, dtype)]
        case "SwiGLU":
            return [swiglu(256, 1024, dtype)]
        case "packed product":
            return [packed_product(1, 4096, 1024, "float32")]
        case _:
            return [logprobs(64, 4096, dtype)]
