"""Shared prompts: neighbouring sequences of a batch that begin with the same prompt. The model reads this prompt once.

M tokens that are kept, N tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schoolhouse.algorithms.packing import MIN_SHARED, Batch


@dataclass(frozen=True)
class SharedPrompts:
    """A batch that contains each shared prompt once: before the first of the neighbouring sequences with this prompt.

    kept      [M] indices of the tokens of the batch that are kept
    place     [N] index of each token of the batch among the kept tokens
    lengths   length of each sequence, without its prompt if the prompt belongs to an earlier sequence
    prefixes  (index of its prompt among the kept tokens, length of the prompt); (0, 0) if it has its own prompt
    """

    kept: Tensor
    place: Tensor
    lengths: tuple[int, ...]
    prefixes: tuple[tuple[int, int], ...]


def share_prompts(batch: Batch) -> SharedPrompts:
    """Find neighbouring sequences with the same prompt of 16 tokens or more. The prompt ends before the loss mask."""
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
