"""For contenders that generate with transformers: the end of a turn is impossible before an answer's length."""

import torch
from transformers import LogitsProcessor


class EndAt(LogitsProcessor):
    """No id that ends a turn can be said before an answer's length, and nothing but the first of them at it."""

    def __init__(self, lengths: torch.Tensor, prompt: int, ends: list[int]) -> None:
        self.lengths, self.prompt, self.ends = lengths, prompt, ends

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        over = self.lengths <= input_ids.shape[1] - self.prompt + 1
        others = torch.arange(scores.shape[1], device=scores.device) != self.ends[0]
        scores = scores.masked_fill(over[:, None] & others, float("-inf"))
        scores[:, self.ends] = float("-inf")
        scores[over, self.ends[0]] = 0.0
        return scores
