"""What queries may look at: `Packed` sequences for learning, `Slots` for sampling. The decoder knows neither.

N tokens of a batch, S sequences or slots, T tokens of the longest, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _repeat_heads(x_SKTD: Tensor, heads: int) -> Tensor:
    """Grouped-query attention: each key head serves heads / K query heads."""
    times = heads // x_SKTD.shape[1]
    return x_SKTD if times == 1 else x_SKTD.repeat_interleave(times, dim=1)


class Packed:
    """Sequences end to end, each blind to the others and causal within itself. No token is padding.

    Only inside attention are sequences laid side by side, [S, T]: the unused corners are behind every real token, so a
    causal mask hides them. `keep=True` remembers the keys and values of each layer (to prefill slots from).
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", keep: bool = False) -> None:
        self.lengths = torch.as_tensor(lengths, device=device)
        self.sequences, self.longest = len(lengths), max(lengths)
        self.even = min(lengths) == self.longest
        sequence_N = torch.repeat_interleave(torch.arange(self.sequences, device=device), self.lengths)
        start_S = torch.cumsum(self.lengths, 0) - self.lengths
        self.positions = torch.arange(len(sequence_N), device=device) - start_S[sequence_N]  # [N]
        self.corner = sequence_N * self.longest + self.positions  # [N] place of token n in [S * T]
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None

    def side_by_side(self, x_NKD: Tensor) -> Tensor:
        """[N, K, D] -> [S, K, T, D]."""
        if not self.even:
            room = x_NKD.new_zeros(self.sequences * self.longest, *x_NKD.shape[1:])
            x_NKD = room.index_copy(0, self.corner, x_NKD)
        return x_NKD.view(self.sequences, self.longest, *x_NKD.shape[1:]).transpose(1, 2)

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        # float32 here even under autocast: on CPUs without AMX, bfloat16 attention is 2 to 4 times slower
        q_NHD, k_NKD, v_NKD = q_NHD.float(), k_NKD.float(), v_NKD.float()
        k_SKTD, v_SKTD = self.side_by_side(k_NKD), self.side_by_side(v_NKD)
        if self.kept is not None:
            self.kept.append((k_SKTD, v_SKTD))
        heads = q_NHD.shape[1]
        with torch.autocast(q_NHD.device.type, enabled=False):
            seen_SHTD = F.scaled_dot_product_attention(
                self.side_by_side(q_NHD), _repeat_heads(k_SKTD, heads), _repeat_heads(v_SKTD, heads), is_causal=True
            )
        seen_NHD = seen_SHTD.transpose(1, 2).reshape(-1, *q_NHD.shape[1:])
        return seen_NHD if self.even else seen_NHD[self.corner]


class Slots:
    """Preallocated keys and values of up to S sequences of up to T tokens; the busy ones are always the first `busy`.

    A slot that is done is filled with the last busy one, so that every step works on a dense batch without copying.
    """

    def __init__(
        self, layers: int, slots: int, heads: int, room: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        self.keys = [torch.zeros(slots, heads, room, width, device=device) for _ in range(layers)]  # [S, K, T, D]
        self.values = [torch.zeros(slots, heads, room, width, device=device) for _ in range(layers)]
        self.length = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens in each slot
        self.slots, self.room, self.busy, self.reach = slots, room, 0, 0
        self._rows = torch.arange(slots, device=device)
        self._bias = torch.zeros(0, device=device)

    @property
    def free(self) -> int:
        return self.slots - self.busy

    def admit(self, prompts: Packed, source: Tensor) -> None:
        """Fill the next slots with prompts that were prefilled: slot busy + i holds prompt source[i]. [n]"""
        if prompts.kept is None:
            raise ValueError("these prompts were not prefilled with keep=True")
        new = slice(self.busy, self.busy + len(source))
        for layer, (k, v) in enumerate(prompts.kept):
            self.keys[layer][new, :, : prompts.longest] = k[source]
            self.values[layer][new, :, : prompts.longest] = v[source]
        self.length[new] = prompts.lengths[source]
        self.busy += len(source)

    def begin_step(self) -> Tensor:
        """Call once a step, before the decoder: positions [busy] of the tokens about to be added."""
        position = self.length[: self.busy]
        longest = int(position.max()) + 1
        self.reach = min(self.room, (longest + 31) // 32 * 32)
        hidden = torch.arange(self.reach, device=position.device) > position[:, None]  # [S, T]
        self._bias = torch.zeros(hidden.shape, device=position.device).masked_fill_(hidden, float("-inf"))[
            :, None, None
        ]
        return position

    def end_step(self) -> None:
        self.length[: self.busy] += 1

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """One new token in each busy slot: N = busy."""
        n, heads, width = q_NHD.shape
        rows, place = self._rows[:n], self.length[:n]
        self.keys[layer][rows, :, place] = k_NKD.float()
        self.values[layer][rows, :, place] = v_NKD.float()
        k_SKTD, v_SKTD = self.keys[layer][:n, :, : self.reach], self.values[layer][:n, :, : self.reach]
        # the H / K query heads of one key head side by side as rows of one product, [S, K, H/K, D]
        q = q_NHD.float().view(n, k_SKTD.shape[1], -1, width) * width**-0.5
        with torch.autocast(q.device.type, enabled=False):
            weight = torch.softmax(q @ k_SKTD.transpose(-1, -2) + self._bias, dim=-1)  # [S, K, H/K, T]
            return (weight @ v_SKTD).view(n, heads, width)

    def release(self, done: Tensor) -> Tensor:
        """Slots that are `done` [busy] leave; gives the old places of those that stay, in their new order."""
        stay = int((~done).sum())
        old = torch.arange(self.busy, device=done.device)
        holes, movers = old[:stay][done[:stay]], old[stay:][~done[stay:]]
        order = old[:stay].clone()
        order[holes] = movers
        if len(holes):
            for cache in (*self.keys, *self.values):
                cache[holes] = cache[movers]
            self.length[holes] = self.length[movers]
        self.busy = stay
        return order
