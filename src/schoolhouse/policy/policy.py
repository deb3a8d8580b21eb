"""The policy: one definition and one copy of the weights, both sampled and trained. Three verbs: extend, score, update.

N tokens of a batch, T tokens of a rollout, V vocabulary, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from schoolhouse.durable import model_in
from schoolhouse.objectives import Objective
from schoolhouse.packing import Batch, Scores, pack, pack_whole, shared, token_mean
from schoolhouse.policy import sampler, speakers
from schoolhouse.policy.checkpoint import load_decoder, save_decoder
from schoolhouse.policy.decoder import Decoder, Shape, initialise
from schoolhouse.policy.exact import ExactPacked, ExactSlots, prepare
from schoolhouse.policy.memory import give_back
from schoolhouse.policy.native import NativePacked, best_memories
from schoolhouse.policy.rows import log_probabilities
from schoolhouse.randomness import digest, numpy_random
from schoolhouse.text.conversation import Conversation
from schoolhouse.types import Key, Precision, Problem, Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.policy.huggingface import Adapter

_CHUNK = 1 << 25  # logits held at once ...
_ROWS = 256  # ... but of at least so many tokens: a product of few rows is slow


class Adam(NamedTuple):
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101). Decay applies to matrices alone."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0


class RolloutScores(NamedTuple):
    """What a policy makes of one rollout. Zero at tokens that nobody wrote. [T], float32."""

    logprob: np.ndarray
    entropy: np.ndarray


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 for matrix products where the processor multiplies it natively, else float32."""
    if wanted == "auto":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        probes = (
            [torch.cuda.is_bf16_supported] if device.type == "cuda" else [getattr(torch.cpu, n, bool) for n in names]
        )
        return torch.bfloat16 if any(probe() for probe in probes) else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


class Policy:
    """A decoder that talks (through `conversation`) and learns (through `optimizer`).

    `version` counts updates: a rollout remembers which version wrote it. `recompute` is activation checkpointing:
    learning keeps what enters a block and computes its inside again (Chen et al. 2016, arXiv 1604.06174).
    """

    def __init__(
        self,
        decoder: Decoder | Adapter,
        conversation: Conversation,
        precision: Precision = "auto",
        adam: Adam | None = None,
        recompute: bool = False,
    ) -> None:
        if conversation.tokenizer.size > decoder.shape.vocab_size:
            raise SchoolError(
                f"the tokenizer has {conversation.tokenizer.size} ids, the model only {decoder.shape.vocab_size} "
                "(vocab_size in config.json): they do not belong together"
            )
        self.device = pick_device()
        self.decoder = decoder.to(self.device)
        self.conversation = conversation
        self.dtype = pick_precision(precision, self.device)
        self.packed, self.slots = best_memories(decoder.shape.head_dim, self.dtype, self.device)
        if precision == "exact":
            prepare(self.decoder)
            self.packed, self.slots = ExactPacked, ExactSlots
        if isinstance(decoder, Decoder):
            decoder.recompute = recompute
        elif recompute:
            raise SchoolError("`recompute` is for Llama, Qwen2, Qwen3 and Mistral decoders alone: set it to false")
        self.version, self._adam = 0, adam or Adam()
        self.optimizer = self._fresh_optimizer(self._adam)

    # --- coming and going

    @classmethod
    def create(
        cls,
        shape: Shape,
        conversation: Conversation,
        seed: int = 0,
        precision: Precision = "auto",
        adam: Adam | None = None,
        recompute: bool = False,
    ) -> Policy:
        """A policy with random weights, the same for the same seed."""
        decoder = Decoder(shape)
        initialise(decoder, torch.Generator().manual_seed(digest(Key(seed, "weights")) % 2**63))
        return cls(decoder, conversation, precision, adam, recompute)

    @classmethod
    def load(
        cls, folder: Path | str, precision: Precision = "auto", adam: Adam | None = None, recompute: bool = False
    ) -> Policy:
        """A policy from a model folder in Hugging Face format, or from the newest checkpoint of a run.

        Raises SchoolError naming what is missing or damaged.
        """
        folder = model_in(folder)
        if not folder.is_dir():
            raise SchoolError(f"{folder} is not a folder; a model is a local folder in Hugging Face format")
        return cls(load_decoder(folder), Conversation.load(folder), precision, adam, recompute)

    def restart(self, folder: Path | str | None = None) -> None:
        """A fresh optimizer, and the weights of a model of the same shape, if one is given."""
        if folder is not None:
            self.decoder.load_state_dict(load_decoder(model_in(folder)).state_dict())
        self.optimizer = self._fresh_optimizer(self._adam)

    def save(self, folder: Path | str) -> None:
        """Write the model in Hugging Face format: config, safetensors, tokenizer, chat template."""
        tokenizer = self.conversation.tokenizer
        save_decoder(self.decoder, Path(folder), tokenizer.eos_id, tokenizer.pad_id)
        self.conversation.save(Path(folder))

    @property
    def shares(self) -> bool:
        """Whether learning reads a prompt once for all that go on from it: tell `pack`."""
        return self.packed is NativePacked

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self.decoder.shape.longest

    def state_dict(self) -> dict[str, Any]:
        """What training needs beyond the model: optimizer moments and version."""
        return {"optimizer": self.optimizer.state_dict(), "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]

    def _fresh_optimizer(self, adam: Adam) -> torch.optim.AdamW:
        parameters = [p for p in self.decoder.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": adam.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    # --- the three verbs

    def extend(
        self,
        rollouts: Sequence[Rollout],
        length: int | Sequence[int],
        *,
        stop: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        slots: int = 512,
        think: int | None = None,
        stop_texts: Sequence[str] = (),
        then: speakers.Then | None = None,
        room: int | None = None,
        noise: float = 0.0,
        on_token: sampler.OnToken | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """Say up to `length` tokens after each prefix; the same order back. See sampler.extend.

        stop        ids that end a turn: those of the conversation unless given
        stop_texts  texts that do too, however they are cut into tokens
        think       tokens a turn may take before its thought is closed by force: a thinking budget
        then        what a rollout whose turn ended goes on from, in its slot (tools, users); needs `room` for all turns
        noise       deviation of a fixed noise on the logits: a sampler that is not quite the policy, for experiments
        """
        ends = None
        if stop_texts:
            maybe, ended = self.conversation.ends_with(stop_texts)
            maybe += [False] * (self.decoder.shape.vocab_size - len(maybe))
            ends = torch.tensor(maybe), ended
        if think is not None:
            if then or not isinstance(length, int):
                raise SchoolError("a thinking budget goes with one `length` for all and without `then`")
            then, length, room = self._budget(rollouts, think, length), min(think, length), length
        with self.autocast():
            extended = sampler.extend(
                self.decoder,
                rollouts,
                length,
                self.conversation.stop_ids if stop is None else stop,
                self.version,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                slots=slots,
                room=room,
                then=then,
                ends=ends,
                tilt=self._tilt(noise) if noise else None,
                memories=(self.packed, self.slots),
                on_token=on_token,
                progress=progress,
            )
        give_back()
        return extended

    def serve(
        self, door: sampler.Door, slots: int, context: int, then: speakers.Then, on_token: sampler.OnToken
    ) -> None:
        """Extend whatever comes through a door, up to `slots` at once, until nobody comes any more.

        context  tokens that a rollout may have, its prefix included
        """
        with self.autocast():
            sampler.extend(
                self.decoder,
                [],
                [],
                self.conversation.stop_ids,
                self.version,
                slots=slots,
                room=context,
                then=then,
                memories=(self.packed, self.slots),
                door=door,
                on_token=on_token,
            )
        give_back()

    def _tilt(self, deviation: float) -> Tensor:
        """The same noise in every call of every run. [V]"""
        drawn = numpy_random(Key(0, "sampler noise")).normal(0.0, deviation, self.decoder.shape.vocab_size)
        return torch.from_numpy(drawn).float().to(self.device)

    def _budget(self, rollouts: Sequence[Rollout], think: int, length: int) -> speakers.Then:
        """After `think` tokens a thought that is still open is closed; what is left of `length` goes to the answer."""
        start = {(rollout.problem.id, rollout.key._replace(turn=0)): len(rollout) for rollout in rollouts}

        def go_on(ended: Rollout) -> tuple[Rollout, int] | None:
            begun = start[ended.problem.id, ended.key._replace(turn=0)]
            if ended.finish != "length" or len(ended) - begun != think:
                return None
            longer = self.conversation.close_thought(ended)
            return longer, length - (len(longer) - begun)

        return go_on

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], temperature: float = 1.0, budget: int = 4_096) -> list[RolloutScores]:
        """How likely the policy finds each written token, whoever wrote it; the same order back."""
        scored: list[RolloutScores | None] = [None] * len(rollouts)
        for members, batch in pack_whole(rollouts, budget):
            scores = self._scores(batch, temperature)
            logprob, entropy = scores.logprob.cpu().numpy(), scores.entropy.cpu().numpy()
            start = 0
            for i in members:
                end = start + len(rollouts[i])
                scored[i] = RolloutScores(logprob[start:end], entropy[start:end])
                start = end
        return [s for s in scored if s is not None]

    def update(
        self,
        batches: Sequence[Batch],
        objective: Objective,
        learning_rate: float,
        clip_norm: float = 1.0,
        temperature: float = 1.0,
        gap_limit: float = math.inf,
        watch: Callable[[Batch, Scores], dict[str, float]] | None = None,
    ) -> dict[str, Any]:
        """One optimizer step on sum(weight x loss) over all batches: how they are cut changes memory, nothing else.

        `watch` gives more numbers of a batch, means over its "tokens", to be reported as means over all of them.

        Raises SchoolError, before the weights are touched, when the gradient is not finite, and when sampled and
        learned log-probabilities lie further apart than `gap_limit` in the mean.
        """
        self.optimizer.zero_grad(set_to_none=True)
        totals = {"loss": 0.0, "tokens": 0.0, "entropy": 0.0, "gap": 0.0, "gap_tokens": 0.0}
        watched: list[dict[str, float]] = []
        for batch in batches:
            scores = self._scores(batch, temperature)
            loss = (batch.weight.to(self.device) * objective(batch.to(self.device), scores)).sum()
            loss.backward()
            totals["loss"] += float(loss.detach())
            watched.append(watch(batch.to(self.device), scores) if watch else {})
            self._account(totals, batch, scores)
        norm = float(torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), clip_norm))
        if not math.isfinite(norm):
            raise SchoolError(
                f"the gradient of update {self.version} is {norm}: nothing was changed; "
                "lower the learning rate, or look at the rollouts and advantages of this step"
            )
        gap = totals["gap"] / max(totals["gap_tokens"], 1.0)
        if gap > gap_limit:
            raise SchoolError(
                f"sampled and learned log-probabilities lie {gap:.3g} apart in the mean before update {self.version} "
                f"(gap_limit {gap_limit:g}): the rollouts are not the policy's own; nothing was changed; try precision "
                "float32 or exact, and see that nothing writes into the weights between sampling and learning"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.version += 1
        give_back()
        tokens = max(totals["tokens"], 1.0)
        stats = {"loss": totals["loss"], "grad_norm": norm, "entropy": totals["entropy"] / tokens, "tokens": tokens}
        if totals["gap_tokens"]:
            stats["gap"] = gap
        names = watched[0].keys() - {"tokens"} if watched else ()
        return stats | {name: sum(row[name] * row["tokens"] for row in watched) / tokens for name in sorted(names)}

    def rehearse(self, longest: int, token_budget: int) -> None:
        """Learn from the heaviest micro-batch there can be, and forget it: what does not fit fails now, not later."""
        longest = min(longest, self.longest)
        nobody, all_of_it = (math.nan,) * longest, (True,) * longest
        row = Rollout(Problem("rehearsal", (), ""), Key(0, "rehearsal"), (0,) * longest, all_of_it, nobody)
        rows = [row] * max(1, token_budget // longest)
        for batch in pack(rows, token_mean(rows), token_budget, prompts=False):
            self._scores(batch, 1.0).logprob.sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _account(self, totals: dict[str, float], batch: Batch, scores: Scores) -> None:
        """Entropy of the tokens trained on, and how far sampled and learner log-probabilities lie apart."""
        trained = (batch.weight > 0).to(self.device)
        totals["tokens"] += float(trained.sum())
        totals["entropy"] += float(scores.entropy[trained].sum())
        if "sampled" in batch.columns:
            apart = (scores.logprob.detach() - batch["sampled"].to(self.device))[trained].abs()
            known = torch.isfinite(apart)
            totals["gap"] += float(apart[known].sum())
            totals["gap_tokens"] += float(known.sum())

    # --- one forward

    def _scores(self, batch: Batch, temperature: float) -> Scores:
        """Log-probability and entropy at each written token of a batch. The one place that shifts by a token."""
        if (most := max(batch.lengths)) > self.longest:
            raise SchoolError(f"a text has {most} tokens, the model reads {self.longest}: shorten it (`length`)")
        said = (batch.written & (batch.positions > 0)).nonzero()[:, 0]
        if self.shares:
            once = shared(batch)
            memory = NativePacked(once.lengths, prefixes=once.prefixes)
            tokens, place = batch.tokens[once.kept], once.place[said - 1]
        else:
            memory, tokens, place = self.packed(batch.lengths, self.device), batch.tokens, said - 1
        said = said.to(self.device)
        with self.autocast():
            hidden_NC = self.decoder(tokens.to(self.device), memory.positions, memory)
            target, before = batch.tokens.to(self.device)[said], hidden_NC[place.to(self.device)]
            piece = max(_ROWS, _CHUNK // self.decoder.shape.vocab_size)
            parts = [
                self._read_out(h, t, temperature)
                if len(said) <= piece
                else checkpoint(self._read_out, h, t, temperature, use_reentrant=False, preserve_rng_state=False)
                for h, t in zip(before.split(piece), target.split(piece), strict=True)
            ]
            logprob, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        nothing = torch.zeros(len(batch.tokens), device=self.device)
        return Scores(nothing.index_put((said,), logprob), nothing.index_put((said,), entropy))

    def _read_out(self, before: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return log_probabilities(self.decoder.project(before), target, temperature or 1.0)
