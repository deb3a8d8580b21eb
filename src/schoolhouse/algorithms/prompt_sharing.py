"""Prompts that are read once: neighbouring sequences of a batch that begin with the same tokens.

M tokens that are left, N tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schoolhouse.algorithms.packing import MIN_SHARED, Batch


@dataclass(frozen=True)
class SharedPrompts:
    """A batch in which a prompt stands once, before the first of the neighbouring sequences that go on from it.

    kept      [M] which tokens of the batch are left
    place     [N] where each token of the batch stands among them
    lengths   of each sequence, without its prompt where that stands elsewhere
    prefixes  (where its prompt begins among the kept, how long it is); (0, 0) where that stands before it
    """

    kept: Tensor
    place: Tensor
    lengths: tuple[int, ...]
    prefixes: tuple[tuple[int, int], ...]


def share_prompts(batch: Batch) -> SharedPrompts:
    """Find neighbouring sequences with the same prompt (all before the loss mask begins) of 16 tokens or more."""
    tokens, loss_mask = batch.tokens.numpy(), batch.loss_mask.numpy()
    kept, place = np.ones(len(tokens), dtype=bool), np.empty(len(tokens), dtype=np.int64)
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    start = left = 0  # in the batch, among the kept
    first, shared_tokens = 0, tokens[:0]  # where the present prompt begins among the kept, and its ids
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
