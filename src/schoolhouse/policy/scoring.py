"""Log-probabilities of a packed batch: the one forward pass that both scoring and learning use.

N tokens of a batch, V vocabulary, C width.
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

_CHUNK = 1 << 25  # logits held at once ...
_ROWS = 256  # ... but of at least so many tokens: a product of few rows is slow


def batch_scores(
    decoder: Decoder | HFAdapter,
    batch: Batch,
    attention: type[PackedAttention],
    autocast: AbstractContextManager[object],
    device: torch.device,
    temperature: float,
) -> Scores:
    """Log-probability and entropy at each token of the loss mask. The one place that shifts by a token.

    Raises SchoolError for a sequence that is longer than the model reads.
    """
    if (most := max(batch.lengths)) > decoder.config.max_seq_len:
        raise SchoolError(
            f"a sequence has {most} tokens, the model reads {decoder.config.max_seq_len}: "
            "shorten it (`sampling.max_new_tokens`, `seq_len`), or use a model with a longer context"
        )
    targets = (batch.loss_mask & (batch.positions > 0)).nonzero()[:, 0]
    if attention is NativePackedAttention:
        once = share_prompts(batch)
        memory = NativePackedAttention(once.lengths, prefixes=once.prefixes)
        tokens, place = batch.tokens[once.kept], once.place[targets - 1]
    else:
        memory, tokens, place = attention(batch.lengths, device), batch.tokens, targets - 1
    targets = targets.to(device)

    def read_out(hidden_NC: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs_and_entropy(decoder.project(hidden_NC), target_N, temperature or 1.0)

    with autocast:
        hidden_NC = decoder(tokens.to(device), memory.positions, memory)
        target_N, before_NC = batch.tokens.to(device)[targets], hidden_NC[place.to(device)]
        piece = max(_ROWS, _CHUNK // decoder.config.vocab_size)
        parts = [
            read_out(hidden, target)
            if len(targets) <= piece
            else checkpoint(read_out, hidden, target, use_reentrant=False, preserve_rng_state=False)
            for hidden, target in zip(before_NC.split(piece), target_N.split(piece), strict=True)
        ]
        logprob, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    nothing = torch.zeros(len(batch.tokens), device=device)
    return Scores(nothing.index_put((targets,), logprob), nothing.index_put((targets,), entropy))
