"""Log-probabilities of a packed batch. Scoring and learning both use the forward pass in this file.

In names of tensors, N stands for tokens of a batch, and C for the width of the model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
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
    """Compute the log-probability [N] and the entropy [N] of each token in the loss mask.

    Tokens outside the loss mask get 0. The ids in `unused_ids` have no token, and their probability is 0. If the batch
    has candidates, their log-probabilities are computed too.

    The logits at one position predict the token at the next position. In the whole package, only `batch_scores` shifts
    tokens by one position. Raises SchoolError if a sequence is longer than the model can read.
    """
    if (longest := max(batch.lengths)) > decoder.config.max_seq_len:
        raise SchoolError(
            f"a sequence has {longest} tokens, but the model can read at most {decoder.config.max_seq_len} tokens: "
            "lower `sampling.max_new_tokens` or `seq_len`, or use a model with a longer context"
        )
    targets = (batch.loss_mask & (batch.positions > 0)).nonzero()[:, 0]
    if packed_attention is NativePackedAttention:
        shared = share_prompts(batch)
        packed: PackedAttention = NativePackedAttention(shared.lengths, prefixes=shared.prefixes)
        tokens, predictors = batch.tokens[shared.kept], shared.place[targets - 1]
    else:
        packed, tokens, predictors = packed_attention(batch.lengths, device), batch.tokens, targets - 1
    targets = targets.to(device)

    def project(hidden_NC: Tensor, target_N: Tensor, id_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_NV = mask_unused(decoder.project(hidden_NC), unused_ids)
        logprob_N, entropy_N = logprobs_and_entropy(logits_NV, target_N, temperature or 1.0)
        if not id_NK.numel():
            return logprob_N, entropy_N, logits_NV.new_zeros(id_NK.shape)
        difference_NK = logits_NV.gather(1, id_NK) - logits_NV.gather(1, target_N[:, None])
        return logprob_N, entropy_N, difference_NK.float() / (temperature or 1.0) + logprob_N[:, None]

    with autocast:
        hidden_NC = decoder(tokens.to(device), packed.positions, packed)
        target_N, predictor_NC = batch.tokens.to(device)[targets], hidden_NC[predictors.to(device)]
        ids = batch.candidates[0] if batch.candidates else targets.new_zeros(len(targets), 0)
        chunk = logits_chunk(decoder.config.vocab_size)
        parts = zip(predictor_NC.split(chunk), target_N.split(chunk), ids.to(device).split(chunk), strict=True)
        chunks = [
            project(*part)
            if len(targets) <= chunk
            else checkpoint(project, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        logprob, entropy, candidates = (torch.cat(column) for column in zip(*chunks, strict=True))
    zeros = torch.zeros(len(batch.tokens), device=device)
    scores = Scores(zeros.index_put((targets,), logprob), zeros.index_put((targets,), entropy))
    return replace(scores, candidates=candidates) if batch.candidates else scores


def logits_chunk(vocab_size: int) -> int:
    """Return the number of tokens whose logits are in memory at the same time."""
    return max(_MIN_CHUNK_TOKENS, _CHUNK_LOGITS // vocab_size)
