"""What queries may look at: `Packed` sequences for learning, `Slots` for sampling. The decoder knows neither.

N tokens of a batch, S sequences or slots, T tokens of the longest, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGN = 32  # room for prompts is a multiple of this


def _repeat_heads(x_SKTD: Tensor, heads: int) -> Tensor:
    """Grouped-query attention: each key head serves heads / K query heads."""
    times = heads // x_SKTD.shape[1]
    return x_SKTD if times == 1 else x_SKTD.repeat_interleave(times, dim=1)


class PackedAttention:
    """Sequences end to end, each blind to the others and causal within itself. No token is padding.

    Only inside attention are sequences laid side by side, [S, T]: the unused corners are behind every real token, so a
    causal mask hides them. `keep=True` remembers the keys and values of each layer (to prefill slots from).
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", keep_kv: bool = False) -> None:
        self.lengths = torch.as_tensor(lengths, device=device)
        self.num_sequences, self.max_len = len(lengths), max(lengths)
        self.equal_lengths = min(lengths) == self.max_len
        sequence_N = torch.repeat_interleave(torch.arange(self.num_sequences, device=device), self.lengths)
        self.starts = F.pad(torch.cumsum(self.lengths, 0), (1, 0))  # [S + 1]
        self.positions = torch.arange(len(sequence_N), device=device) - self.starts[sequence_N]  # [N]
        self.padded_place = sequence_N * self.max_len + self.positions  # [N] place of token n in [S * T]
        self.kept_kv: list[tuple[Tensor, Tensor]] | None = [] if keep_kv else None

    def pad(self, x_NKD: Tensor) -> Tensor:
        """[N, K, D] -> [S, K, T, D]."""
        if not self.equal_lengths:
            room = x_NKD.new_zeros(self.num_sequences * self.max_len, *x_NKD.shape[1:])
            x_NKD = room.index_copy(0, self.padded_place, x_NKD)
        return x_NKD.view(self.num_sequences, self.max_len, *x_NKD.shape[1:]).transpose(1, 2)

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        # float32 even under autocast: on CPUs without AMX, bfloat16 attention is 2 to 4 times slower; not so on GPUs
        dtype = v_NKD.dtype if v_NKD.is_cuda else torch.float32
        q_NHD, k_NKD, v_NKD = q_NHD.to(dtype), k_NKD.to(dtype), v_NKD.to(dtype)
        k_SKTD, v_SKTD = self.pad(k_NKD), self.pad(v_NKD)
        if self.kept_kv is not None:
            self.kept_kv.append((k_SKTD, v_SKTD))
        heads = q_NHD.shape[1]
        with torch.autocast(q_NHD.device.type, enabled=False):
            seen_SHTD = F.scaled_dot_product_attention(
                self.pad(q_NHD), _repeat_heads(k_SKTD, heads), _repeat_heads(v_SKTD, heads), is_causal=True
            )
        seen_NHD = seen_SHTD.transpose(1, 2).reshape(-1, *q_NHD.shape[1:])
        return seen_NHD if self.equal_lengths else seen_NHD[self.padded_place]


class SlotKVCache:
    """Preallocated keys and values of up to S growing sequences; the busy slots are always the first `busy`.

    Two stores a layer: each distinct prompt once, whoever goes on from it, and what each slot said since. A query looks
    at both: at its prompt together with all slots of that prompt, as one matrix product, and at its own store alone.
    The two looks are merged by their log-sum-exp. A slot that is done is filled with the last busy one, so that every
    step works on a dense batch without copying. P prompts in use, M slots of the prompt that has most.
    """

    dtype = torch.float32
    """What keys and values are kept in."""

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        head_dim: int,
        prompt_capacity: int,
        capacity: int,
        max_prompts: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`room` tokens in each slot, behind a prompt of up to `prompt_room`; up to `prompts` distinct ones at once."""
        max_prompts = num_slots if max_prompts is None else min(max_prompts, num_slots)
        prompt_capacity += -prompt_capacity % _ALIGN

        def store(*sizes: int) -> list[Tensor]:
            return [lazy_zeros(sizes, self.dtype, device) for _ in range(num_layers)]

        self.prompt_keys = store(max_prompts, num_kv_heads, head_dim, prompt_capacity)  # [P, K, D, T], as they are multiplied
        self.prompt_values = store(max_prompts, num_kv_heads, prompt_capacity, head_dim)  # [P, K, T, D]
        self._allocate_slots(store, num_slots, num_kv_heads, capacity, head_dim)
        self.prompt_length = torch.zeros(max_prompts, dtype=torch.long, device=device)  # [P]
        self.prompt_of = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S]
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] tokens behind the prompt
        self.prompt_names: list[Hashable] = []  # [P] of the prompts in use
        self.num_slots, self.capacity, self.busy = num_slots, capacity, 0
        self._rows = torch.arange(num_slots, device=device)

    def _allocate_slots(self, allocate: Callable[..., list[Tensor]], num_slots: int, num_kv_heads: int, capacity: int, head_dim: int) -> None:
        """Make the stores for what slots say."""
        self.keys, self.values = allocate(num_slots, num_kv_heads, capacity, head_dim), allocate(num_slots, num_kv_heads, capacity, head_dim)  # [S, K, T, D]

    def _own(self) -> list[Tensor]:
        """What busy slots have said, of each store: a row for each slot."""
        return [store[:, :, : int(self.lengths[: self.busy].max())] for store in (*self.keys, *self.values)]

    @property
    def free(self) -> int:
        return self.num_slots - self.busy

    def store_prompts(self, packed: PackedAttention, names: Sequence[Hashable]) -> None:
        """Keep prompts that were just read. `admit` next: `release` drops those that nobody goes on from."""
        if packed.kept_kv is None:
            raise ValueError("these prompts were not prefilled with keep=True")
        places = slice(len(self.prompt_names), len(self.prompt_names) + packed.num_sequences)
        for layer, (k, v) in enumerate(packed.kept_kv):
            self.prompt_keys[layer][places, :, :, : packed.max_len] = k.transpose(-1, -2)
            self.prompt_values[layer][places, :, : packed.max_len] = v
        self.prompt_length[places] = packed.lengths
        self.prompt_names += names

    def admit(self, names: Sequence[Hashable]) -> None:
        """Fill the next slots: slot busy + i goes on from the prompt names[i]."""
        place = {name: at for at, name in enumerate(self.prompt_names)}
        new = slice(self.busy, self.busy + len(names))
        self.prompt_of[new] = torch.tensor([place[name] for name in names], device=self.lengths.device)
        self.lengths[new] = 0
        self.busy += len(names)
        self._seat()

    def release(self, finished: Tensor) -> Tensor:
        """Slots that are `done` [busy] leave; gives the old places of those that stay, in their new order."""
        order = _close_ranks(~finished, [*self._own(), self.prompt_of, self.lengths])
        self.busy = len(order)
        wanted = torch.bincount(self.prompt_of[: self.busy], minlength=len(self.prompt_names)) > 0
        if not bool(wanted.all()):
            kept = _close_ranks(wanted, [*self.prompt_keys, *self.prompt_values, self.prompt_length])
            place = torch.zeros_like(wanted, dtype=torch.long)
            place[kept] = torch.arange(len(kept), device=place.device)
            self.prompt_of[: self.busy] = place[self.prompt_of[: self.busy]]
            self.prompt_names = [self.prompt_names[old] for old in kept.tolist()]
        if self.busy:
            self._seat()
        return order

    def _seat(self) -> None:
        """A table of prompts and their slots, [P, M]: each busy slot's rank, and who sits where (0 where nobody)."""
        prompt_S = self.prompt_of[: self.busy]
        count_P = torch.bincount(prompt_S, minlength=len(self.prompt_names))
        order, start_P = torch.argsort(prompt_S, stable=True), torch.cumsum(count_P, 0) - count_P
        self._rank = torch.empty_like(prompt_S)  # [S]
        self._rank[order] = self._rows[: self.busy] - start_P[prompt_S[order]]
        self._most = int(count_P.max())
        self._sitter = torch.zeros(
            len(self.prompt_names) * self._most, dtype=torch.long, device=prompt_S.device
        )  # [P * M]
        self._sitter[prompt_S * self._most + self._rank] = self._rows[: self.busy]
        self._prompt_reach, self._prompt_hidden = _hidden(self.prompt_length[: len(self.prompt_names)])

    def begin_step(self) -> Tensor:
        """Call once a step, before the decoder: positions [busy] of the tokens about to be added."""
        said = self.lengths[: self.busy]
        self._reach, self._hidden = _hidden(said + 1)
        return self.prompt_length[self.prompt_of[: self.busy]] + said

    def end_step(self) -> None:
        self.lengths[: self.busy] += 1

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """One new token in each busy slot: N = busy."""
        n, heads, width = q_NHD.shape
        rows, place = self._rows[:n], self.lengths[:n]
        self.keys[layer][rows, :, place] = k_NKD.float()
        self.values[layer][rows, :, place] = v_NKD.float()
        with torch.autocast(q_NHD.device.type, enabled=False):
            # the H / K query heads of one key head side by side as rows of one product
            q_SKgD = (q_NHD.float() * width**-0.5).view(n, k_NKD.shape[1], -1, width)
            own_keys, own_values = self.keys[layer][:n, :, : self._reach], self.values[layer][:n, :, : self._reach]
            own = _look(q_SKgD, own_keys.transpose(-1, -2), own_values, self._hidden)
            prompts = len(self.prompt_names)
            table = (prompts, self._most, *q_SKgD.shape[1:])
            q_PKMD = q_SKgD[self._sitter].view(table).transpose(1, 2).flatten(2, 3)  # [P, K, M * H/K, D]
            shared = _look(
                q_PKMD,
                self.prompt_keys[layer][:prompts, :, :, : self._prompt_reach],
                self.prompt_values[layer][:prompts, :, : self._prompt_reach],
                self._prompt_hidden,
            )
            seat = (self.prompt_of[:n], slice(None), self._rank)
            about_prompt = [x.unflatten(2, (self._most, -1))[seat] for x in shared]  # [S, K, H/K, .]
            return _merge(own, about_prompt).reshape(n, heads, width)


def lazy_zeros(sizes: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that cost nothing until they are written to: on a CPU, memory that the system has not handed out yet."""
    if torch.device(device).type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    plain = np.zeros(sizes, {2: np.uint16, 4: np.float32}[dtype.itemsize])
    return torch.from_numpy(plain).view(dtype)


def trim_memory() -> None:
    """Hand memory that was freed back to the system, where the C library keeps it for later (glibc).

    Sampling and learning free much and take turns: what one keeps, the other would have to have beside it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _hidden(lengths: Tensor) -> tuple[int, Tensor | None]:
    """How far the longest row reaches, and -inf behind the end of shorter ones, [., 1, 1, T]; None: all the same."""
    longest = int(lengths.max())
    if int(lengths.min()) == longest:
        return longest, None
    behind = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return longest, torch.zeros(behind.shape, device=lengths.device).masked_fill_(behind, float("-inf"))[:, None, None]


def _look(q: Tensor, k_DT: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over one store, not yet divided: sum of e^(score - top) v, sum of e^(score - top), top."""
    score = q @ k_DT
    if hidden is not None:
        score += hidden
    top = score.amax(-1, keepdim=True)
    weight = score.sub_(top).exp_()
    return weight @ v, weight.sum(-1, keepdim=True), top


def _merge(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Two looks as one softmax over both stores."""
    top = torch.maximum(one[2], other[2])
    a, b = (one[2] - top).exp_(), (other[2] - top).exp_()
    return (one[0] * a + other[0] * b) / (one[1] * a + other[1] * b)


def _close_ranks(stay: Tensor, stores: Sequence[Tensor]) -> Tensor:
    """Move the last rows of each store into the holes; gives the old places of those that stay, in their new order."""
    n = int(stay.sum())
    old = torch.arange(len(stay), device=stay.device)
    holes, movers = old[:n][~stay[:n]], old[n:][stay[n:]]
    order = old[:n].clone()
    order[holes] = movers
    if len(holes):
        for store in stores:
            store[holes] = store[movers]
    return order
