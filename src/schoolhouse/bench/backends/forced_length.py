"""Make every completion end at a given length, for backends that generate with transformers."""

import torch
from transformers import LogitsProcessor


class ForcedLength(LogitsProcessor):
    """Mask the stop ids (tokens that end a completion) before a completion has its full length. At the full length,
    allow only the first stop id."""

    def __init__(self, lengths: torch.Tensor, prompt_tokens: int, stop_ids: list[int]) -> None:
        self.lengths, self.prompt_tokens, self.stop_ids = lengths, prompt_tokens, stop_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = self.lengths <= input_ids.shape[1] - self.prompt_tokens + 1
        others = torch.arange(scores.shape[1], device=scores.device) != self.stop_ids[0]
        scores = scores.masked_fill(last[:, None] & others, float("-inf"))
        scores[:, self.stop_ids] = float("-inf")
        scores[last, self.stop_ids[0]] = 0.0
        return scores
