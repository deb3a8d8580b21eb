"""Prefill with bounded memory: short prompts are read in groups, and a long prompt is read in chunks.

The memory of activations grows with the number of tokens in a forward pass. For this reason, one forward pass reads at
most `PREFILL_TOKENS` tokens, including the padding.

In the shapes of tensors, N is the number of tokens of a chunk, T the number of tokens up to the end of the chunk, H the
number of query heads, K the number of key heads, and D the head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.kv_cache import AttentionRule, PackedAttention, repeat_heads, ruled_attention

PREFILL_TOKENS = 4_096
"""The maximum number of tokens of a forward pass that reads prompts."""

_QUERIES = 512  # queries that are computed together, because a mask has one number for each query and key


def group_prompts(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Divide prompts into groups. The padded size of a group is at most `PREFILL_TOKENS`, unless the group has only one
    prompt.

    If all prompts fit into one group, their order does not change. Otherwise the prompts are sorted by length, so that
    a group needs little padding.
    """
    if len(prompts) * max(map(len, prompts), default=0) <= PREFILL_TOKENS:
        yield from [list(prompts)] if prompts else ()
        return
    group: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len):
        if group and (len(group) + 1) * len(prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    yield group


class PromptChunk(PackedAttention):
    """Causal attention of one chunk of a prompt. The tokens of the chunk attend to this chunk and to all earlier
    chunks.

    `num_tokens`: the number of tokens N of the chunk.
    `earlier`: the attention of the previous chunk, whose keys and values are kept, or None for the first chunk.

    After the forward pass of the last chunk, `SlotKVCache.store_prompts` stores the whole prompt.
    """

    def __init__(self, num_tokens: int, device: torch.device | str = "cpu", earlier: PromptChunk | None = None) -> None:
        self._start = earlier.max_len if earlier else 0
        super().__init__([self._start + num_tokens], device, keep_kv=True)
        self.positions = self.positions[self._start :]
        self._earlier_kv = earlier.kept_kv if earlier else None

    def attend_by_rule(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: AttentionRule | None
    ) -> Tensor:
        dtype = v_NKD.dtype if v_NKD.is_cuda else torch.float32  # as in PackedAttention
        q_1HND, k_1KTD, v_1KTD = (x.to(dtype).transpose(0, 1)[None] for x in (q_NHD, k_NKD, v_NKD))
        if self._earlier_kv:
            k_1KTD, v_1KTD = (
                torch.cat(pair, 2) for pair in zip(self._earlier_kv[layer], (k_1KTD, v_1KTD), strict=True)
            )
        assert self.kept_kv is not None
        self.kept_kv.append((k_1KTD, v_1KTD))
        k_1HTD, v_1HTD = (repeat_heads(x, q_NHD.shape[1]) for x in (k_1KTD, v_1KTD))
        parts, end = [], self._start
        for q in q_1HND.split(_QUERIES, 2):
            start, end = end, end + q.shape[2]
            k, v = k_1HTD[:, :, :end], v_1HTD[:, :, :end]
            if rule is not None:
                parts.append(ruled_attention(q, k, v, rule))
                continue
            visible = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
            with torch.autocast(q.device.type, enabled=False):
                parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))
        return torch.cat(parts, 2)[0].transpose(0, 1)
