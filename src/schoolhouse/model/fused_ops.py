"""Operations on single rows, such as RMSNorm, rotary embedding, SwiGLU, log-probabilities and sampling from logits.

With a C kernel (model/kernels), each operation reads its input from memory once. Torch reads the input several times.
If the rows are no longer in the processor cache, each further pass over the rows takes as long as a small matrix
product. The C kernels and torch give the same results, except for rounding. kernel_choice.py decides whether a kernel
is used.

In the shapes of tensors, N is the number of tokens of a batch, C the width, H the number of heads, D the head width,
and V the vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schoolhouse.model import kernel_choice, row_kernels
from schoolhouse.model.kernel_build import ANY_HEAD_DIM

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Apply the root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

    The result has the dtype of the matrix products.
    """
    dtype = _matmul_dtype(x_NC)
    if x_NC.dtype != torch.float32 or not _has_kernel("RMSNorm", x_NC, dtype):
        return row_kernels.rms_norm_torch(x_NC, weight_C, eps)
    return row_kernels.rms_norm_kernel(x_NC, weight_C, eps, dtype)


def apply_rotary(
    x_NHD: Tensor, rotation: tuple[Tensor, Tensor], weight_D: Tensor | None, eps: float, round_output: bool = False
) -> Tensor:
    """Apply the rotary embedding to the heads of queries or keys (Su et al. 2021, arXiv 2104.09864).

    If `weight_D` is given, RMSNorm is applied first. Dimension i of the first half of a head is paired with dimension i
    of the second half, as in Hugging Face models. The argument `rotation` contains the cosines and the sines, each of
    shape [N, 1, D / 2]. With `round_output`, the result is rounded to the dtype of x, so that the KV cache stores keys
    without further rounding. A kernel always returns a float32 tensor.
    """
    if not _has_kernel("rotary embedding", x_NHD, x_NHD.dtype, x_NHD.shape[-1]):
        return row_kernels.rotary_torch(x_NHD, rotation, weight_D, eps, round_output)
    return row_kernels.rotary_kernel(x_NHD, rotation, weight_D, eps, round_output)


def swiglu(gate_NC: Tensor, up_NC: Tensor) -> Tensor:
    """Compute the SwiGLU activation, silu(gate) x up (Shazeer 2020, arXiv 2002.05202)."""
    if not _has_kernel("SwiGLU", gate_NC, gate_NC.dtype):
        return row_kernels.swiglu_torch(gate_NC, up_NC)
    return row_kernels.swiglu_kernel(gate_NC, up_NC)


def logprobs_and_entropy(logits_NV: Tensor, token_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of one token per row of logits, and the entropy of each row (without gradient)."""
    if not _has_kernel("log-probabilities", logits_NV, logits_NV.dtype):
        return row_kernels.logprobs_torch(logits_NV, token_N, temperature)
    return row_kernels.logprobs_kernel(logits_NV, token_N, temperature)


def sample_fused(logits_SV: Tensor, uniform_S: Tensor, temperature: float) -> tuple[Tensor, Tensor] | None:
    """Sample one token per row of logits with a uniform random number. Returns the tokens and their log-probabilities.

    Returns None if there is no kernel.
    """
    if not _has_kernel("log-probabilities", logits_SV, logits_SV.dtype):
        return None
    return row_kernels.sample_kernel(logits_SV, uniform_S, temperature)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: the autocast dtype if autocast is on, otherwise the dtype of x."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def _has_kernel(name: str, x: Tensor, dtype: torch.dtype, head_dim: int = ANY_HEAD_DIM) -> bool:
    supported = x.device.type == "cpu" and dtype in _KERNEL_DTYPES
    return supported and kernel_choice.uses_kernel(name, head_dim, dtype)
