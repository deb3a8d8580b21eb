"""Find neighbouring sequences of a batch that begin with the same prompt, so that the model reads the prompt only once.

In the shapes of tensors, M is the number of tokens that are kept, and N the number of tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schoolhouse.algorithms.packing import MIN_SHARED, Batch


@dataclass(frozen=True)
class SharedPrompts:
    """A batch in which each shared prompt is stored once, with the first sequence that has this prompt.

    `kept` has the indices of the tokens of the batch that are kept, [M].
    `place` has, for each token of the batch, its index among the kept tokens, [N].
    `lengths` has the length of each sequence. If an earlier sequence stores the prompt, the length does not include the
    prompt.
    `prefixes` has, for each sequence, the start of its prompt among the kept tokens and the length of the prompt. The
    entry in `prefixes` is (0, 0) if the sequence stores its own prompt.
    """

    kept: Tensor
    place: Tensor
    lengths: tuple[int, ...]
    prefixes: tuple[tuple[int, int], ...]


def share_prompts(batch: Batch) -> SharedPrompts:
    """Find neighbouring sequences that have the same prompt of at least 16 tokens.

    The prompt of a sequence ends before the first token of its loss mask.
    """
    tokens, loss_mask = batch.tokens.numpy(), batch.loss_mask.numpy()
    kept, place = np.ones(len(tokens), dtype=bool), np.empty(len(tokens), dtype=np.int64)
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    start = left = 0  # index in the batch, index among the kept tokens
    first, shared_tokens = 0, tokens[:0]  # index of the present prompt among the kept tokens, and its ids
    for length in batch.lengths:
        prompt = int(loss_mask[start : start + length].argmax())
        prompt_tokens = tokens[start : start + prompt]
        if prompt >= MIN_SHARED and np.array_equal(prompt_tokens, shared_tokens):
            kept[start : start + prompt] = False
            place[start : start + prompt] = np.arange(first, first + prompt)
        else:
            first, shared_tokens, prompt = left, prompt_tokens, 0
        own = length - prompt
        place[start + prompt : start + length] = np.arange(left, left + own)
        lengths.append(own)
        prefixes.append((first, prompt) if prompt else (0, 0))
        start, left = start + length, left + own
    return SharedPrompts(torch.from_numpy(kept.nonzero()[0]), torch.from_numpy(place), tuple(lengths), tuple(prefixes))
