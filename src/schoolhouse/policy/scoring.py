"""Log-probabilities of a packed batch: the one forward pass that both scoring and learning use.

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
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

_CHUNK_LOGITS = 1 << 25  # logits in memory at once ...
_MIN_CHUNK_TOKENS = 256  # ... but at least those of so many tokens: a matrix product of few rows is slow


def batch_scores(
    decoder: Decoder | HFAdapter,
    batch: Batch,
    packed_attention: type[PackedAttention],
    autocast: AbstractContextManager[object],
    device: torch.device,
    temperature: float,
) -> Scores:
    """Log-probability and entropy [N] at each token of the loss mask, zero elsewhere.

    Logits predict the token after them. The whole package shifts by that one token here and nowhere else.
    Raises SchoolError for a sequence that is longer than the model reads.
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
        return logprobs_and_entropy(decoder.project(hidden_NC), target_N, temperature or 1.0)

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
