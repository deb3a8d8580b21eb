"""Log-probabilities of a packed batch. Scoring and learning both use this forward pass.

N tokens of a batch, C width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from schoolhouse.algorithms.packing import Batch, Scores
from schoolhouse.algorithms.prompt_sharing import share_prompts
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.fused_ops import logprobs_and_entropy
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.model.native_attention import NativePackedAttention
from schoolhouse.policy.unused_ids import mask_unused
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

_CHUNK_LOGITS = 1 << 25  # number of logits in memory at the same time
_MIN_CHUNK_TOKENS = 256  # a chunk has at least this many tokens, because matrix products with few rows are slow


def batch_scores(
    decoder: Decoder | HFAdapter,
    batch: Batch,
    packed_attention: type[PackedAttention],
    autocast: AbstractContextManager[object],
    device: torch.device,
    temperature: float,
    unused_ids: Tensor | None = None,
) -> Scores:
    """Log-probability and entropy [N] of each token in the loss mask; other tokens get 0.

    The logits of a token predict the next token. This function is the only place in the package with this shift by one.
    `unused_ids` are ids without a token; their probability is 0.
    Raises SchoolError if a sequence is longer than the model can read.
    """
    if (longest := max(batch.lengths)) > decoder.config.max_seq_len:
        raise SchoolError(
            f"a sequence has {longest} tokens, but the model reads at most {decoder.config.max_seq_len}: "
            "shorten it (`sampling.max_new_tokens`, `seq_len`), or use a model with a longer context"
        )
    targets = (batch.loss_mask & (batch.positions > 0)).nonzero()[:, 0]
    if packed_attention is NativePackedAttention:
        shared = share_prompts(batch)
        packed: PackedAttention = NativePackedAttention(shared.lengths, prefixes=shared.prefixes)
        tokens, predictors = batch.tokens[shared.kept], shared.place[targets - 1]
    else:
        packed, tokens, predictors = packed_attention(batch.lengths, device), batch.tokens, targets - 1
    targets = targets.to(device)

    def project(hidden_NC: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = mask_unused(decoder.project(hidden_NC), unused_ids)
        return logprobs_and_entropy(logits_NV, target_N, temperature or 1.0)

    with autocast:
        hidden_NC = decoder(tokens.to(device), packed.positions, packed)
        target_N, predictor_NC = batch.tokens.to(device)[targets], hidden_NC[predictors.to(device)]
        chunk = max(_MIN_CHUNK_TOKENS, _CHUNK_LOGITS // decoder.config.vocab_size)
        chunks = [
            project(hidden, target)
            if len(targets) <= chunk
            else checkpoint(project, hidden, target, use_reentrant=False, preserve_rng_state=False)
            for hidden, target in zip(predictor_NC.split(chunk), target_N.split(chunk), strict=True)
        ]
        logprob, entropy = (torch.cat(column) for column in zip(*chunks, strict=True))
    zeros = torch.zeros(len(batch.tokens), device=device)
    return Scores(zeros.index_put((targets,), logprob), zeros.index_put((targets,), entropy))
