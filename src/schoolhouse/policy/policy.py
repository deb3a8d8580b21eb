"""A policy has one copy of the weights for sampling and for training.

The three operations of a policy are extend, score and update.

A policy combines a model, a generator (generator.py) and a learner (learner.py). The first update creates the learner
and its optimizer. A policy that is never updated (a reference, a teacher, a reward model or the model of a server) has
no optimizer.

In names of tensors, T stands for tokens of a rollout, and V for the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schoolhouse.algorithms.losses import Loss
from schoolhouse.algorithms.packing import Batch, Scores, pack_for_scoring
from schoolhouse.algorithms.settings import Lora, Optimizer
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.model.batch_invariant import InvariantPackedAttention, InvariantSlotKVCache, make_batch_invariant
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.decoder import Decoder, init_weights
from schoolhouse.model.device import pick_device, pick_dtype
from schoolhouse.model.kernel_choice import best_attention, plain_attention
from schoolhouse.model.kv_cache import trim_memory
from schoolhouse.model.lora_folder import save_model
from schoolhouse.model.native_attention import NativePackedAttention
from schoolhouse.model.packed_decoder import PackedDecoder, SamplingWeights, pack_decoder
from schoolhouse.policy import generator
from schoolhouse.policy.learner import Learner, MetricsFn
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.policy.sampling_progress import sampling_phase
from schoolhouse.policy.scoring import batch_scores
from schoolhouse.policy.slots import NextTurn
from schoolhouse.policy.think_tokens import load_with_think_tokens
from schoolhouse.policy.thinking_budget import close_thought_at_budget
from schoolhouse.policy.unused_ids import find_unused_ids
from schoolhouse.randomness import digest
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.progress import phased, tracked
from schoolhouse.types import Key, Precision, Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter


class RolloutScores(NamedTuple):
    """The log-probability and the entropy of each token of a rollout, as float32 arrays [T].

    For tokens outside the loss mask, the log-probability and the entropy are 0.
    """

    logprob: np.ndarray
    entropy: np.ndarray


class Policy:
    """A decoder with its tokenizer and its chat template (`conversation`). A policy can sample, score and learn.

    `precision`: the precision of matrix multiplications. With the precision `exact`, sampler and learner compute the
        same bits.
    `optimizer`: the config of AdamW.
    `device`: the device of the weights; by default the first GPU, or the CPU if there is no GPU.
    `sampling_weights`: an attribute with the number type of the weights for sampling. The default `auto` is the number
        type of the learner's matrix products.
    `activation_checkpointing`: if true, the learner keeps only the input of each block, and computes the block again in
        the backward pass (Chen et al. 2016, arXiv 1604.06174).
    """

    def __init__(
        self,
        decoder: Decoder | HFAdapter,
        conversation: Conversation,
        precision: Precision = "auto",
        optimizer: Optimizer | None = None,
        activation_checkpointing: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        tokenizer, vocab_size = conversation.tokenizer, decoder.config.vocab_size
        ordinary_ids = set(tokenizer.vocab.values()) - set(tokenizer.special_tokens.values())
        if max(ordinary_ids, default=0) >= vocab_size:  # Gemma 3 1b has a special token for images beyond its rows
            raise SchoolError(
                f"the tokenizer has {conversation.tokenizer.vocab_size} token ids, but the model has only "
                f"{decoder.config.vocab_size} (vocab_size in config.json): use the tokenizer of this model"
            )
        self.device = torch.device(device) if device is not None else pick_device()
        self.decoder = decoder.to(self.device)
        self.conversation = conversation
        missing_ids = conversation.tokenizer.missing_ids(decoder.config.vocab_size)
        self.unused_ids = find_unused_ids(missing_ids, self.device)
        self.precision, self.dtype = precision, pick_dtype(precision, self.device)
        self.packed_attention, self.slot_cache = plain_attention(self.dtype, self.device)
        if decoder.config.plain_attention:
            self.packed_attention, self.slot_cache = best_attention(decoder.config.head_dim, self.dtype, self.device)
        if precision == "exact":
            make_batch_invariant(self.decoder)
            self.packed_attention, self.slot_cache = InvariantPackedAttention, InvariantSlotKVCache
        decoder.activation_checkpointing = activation_checkpointing
        self._optimizer = optimizer or Optimizer()
        self._load: Callable[[Path | str], tuple[Decoder | HFAdapter, Conversation]] = load_with_think_tokens
        self.sampling_weights: SamplingWeights = "auto"
        self._packed: PackedDecoder | None = None

    # --- loading and saving

    @classmethod
    def create(
        cls,
        config: ModelConfig,
        conversation: Conversation,
        seed: int = 0,
        precision: Precision = "auto",
        optimizer: Optimizer | None = None,
        activation_checkpointing: bool = False,
        device: torch.device | str | None = None,
    ) -> Policy:
        """Create a policy with random weights. The weights depend only on the seed."""
        decoder = Decoder(config)
        init_weights(decoder, torch.Generator().manual_seed(digest(Key(seed, "weights")) % 2**63))
        return cls(decoder, conversation, precision, optimizer, activation_checkpointing, device)

    @classmethod
    @phased("loading a model")
    def load(
        cls,
        folder: Path | str,
        precision: Precision = "auto",
        optimizer: Optimizer | None = None,
        activation_checkpointing: bool = False,
        device: torch.device | str | None = None,
        chat: ChatConfig | None = None,
        lora: Lora | None = None,
        seed: int = 0,
    ) -> Policy:
        """Load a policy from a model folder in Hugging Face format, or from the newest checkpoint of a run folder.

        A folder with a LoRA adapter is loaded together with its base model.

        `chat`: the system message, and the chat template with its arguments. The default is the model's own template.
        `lora`: the adapter to train. With `lora` None, the model or the adapter of the folder is loaded. With rank 0,
        the whole model is trained. `seed`: the seed for the initial weights of a new adapter.

        Raises SchoolError if a file is missing or damaged. The error message names the file. Also raises SchoolError if
        the folder holds an adapter that does not fit `lora`.
        """
        if not resolve_model(folder).is_dir():
            raise SchoolError(f"{folder} is not a folder: give a local folder with a model in Hugging Face format")
        load = partial(load_with_think_tokens, chat=chat, lora=lora, seed=seed)
        policy = cls(*load(folder), precision, optimizer, activation_checkpointing, device)
        policy._load = load
        return policy

    def save(self, folder: Path | str) -> None:
        """Write the model in Hugging Face format: config, safetensors, tokenizer and chat template.

        A policy with a LoRA adapter writes the adapter in the format of the package peft, without its base model.
        """
        tokenizer = self.conversation.tokenizer
        save_model(self.decoder, Path(folder), tokenizer.eos_id, tokenizer.pad_id)
        self.conversation.save(Path(folder))

    def reset(self, folder: Path | str | None = None) -> None:
        """Reset the optimizer. If a folder is given, also load the model weights from the folder.

        The loaded model must have the same shape as the model of the policy. With LoRA, the folder of a whole model
        gives a new adapter, with the same initial weights as at the start of the run.
        """
        if folder is not None:
            fresh, _ = self._load(folder)
            self.decoder.load_state_dict(fresh.state_dict())
            self.decoder.lora = fresh.lora
        self.learner.reset()

    def state_dict(self) -> dict[str, Any]:
        """The training state without the model: the optimizer's moments and the number of updates."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)

    @cached_property
    def learner(self) -> Learner:
        """The learner of the policy. The first access to the property `learner` creates the learner."""
        return Learner(self.decoder, self._optimizer)

    @property
    def version(self) -> int:
        """The number of updates so far.

        Each rollout stores how many updates its policy had made when the rollout was sampled.
        """
        return self.learner.step if "learner" in self.__dict__ else 0

    @property
    def shares_prompts(self) -> bool:
        """Whether the learner computes a prompt only once for all rollouts with this prompt.

        Pass `shares_prompts` to the function `pack` as its argument `share_prompts`.
        """
        return self.packed_attention is NativePackedAttention

    @property
    def max_seq_len(self) -> int:
        """The length of the longest sequence that the model can read, in tokens."""
        return self.decoder.config.max_seq_len

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    # --- the three operations

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        stop_ids: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        num_slots: int = 512,
        thinking_budget: int | None = None,
        stop_strings: Sequence[str] = (),
        next_turn: NextTurn | None = None,
        max_total_tokens: int | None = None,
        logit_bias: Tensor | None = None,
        num_candidates: int = 0,
        on_token: generator.OnToken | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """Sample up to `max_new_tokens` tokens after each prefix. Returns the rollouts in the order of their prefixes.

        `stop_ids`: token ids that end a turn; by default the stop ids of the conversation.
        `num_slots`: maximum number of rollouts that are sampled at the same time.
        `thinking_budget`: the number of tokens after which a thought that has not ended is closed.
        `stop_strings`: texts that end a turn. A stop string ends the turn even if it is split into several tokens.
        `next_turn`: a function that is called when a turn ends and that gives the next turn, for example the output of
            a tool. If you use `next_turn`, also set `max_total_tokens`.
        `max_total_tokens`: maximum number of tokens of all turns together, without the first prefix.
        `logit_bias`: a number for each token of the vocabulary [V], which is added to the logit of this token.
        `num_candidates`: the number of most likely tokens that each rollout records for each sampled token
            (`Rollout.candidates`).
        `on_token`: a function that is called with (number of the rollout, token id, log-probability). If `on_token`
            returns True, the turn ends.
        `progress`: a function that is called with the number of rollouts that have just finished.
        """
        stop_matcher = self._stop_matcher(stop_strings) if stop_strings else None
        if thinking_budget is not None:
            if next_turn or not isinstance(max_new_tokens, int):
                raise SchoolError(
                    "`thinking_budget` needs one `max_new_tokens` for all rollouts, and cannot be used with "
                    "`next_turn`: give one number, and leave out `next_turn`"
                )
            next_turn = self._close_thoughts(rollouts, thinking_budget, max_new_tokens)
            max_total_tokens, max_new_tokens = max_new_tokens, min(thinking_budget, max_new_tokens)
        with sampling_phase(len(rollouts), max_total_tokens or max_new_tokens, on_token) as meter, self.autocast():
            extended = generator.extend(
                self._sampler(),
                rollouts,
                max_new_tokens,
                self.conversation.stop_ids if stop_ids is None else stop_ids,
                self.version,
                params=SamplingParams(temperature, top_k, top_p, min_p),
                num_slots=num_slots,
                max_total_tokens=max_total_tokens,
                next_turn=next_turn,
                stop_matcher=stop_matcher,
                logit_bias=None if logit_bias is None else logit_bias.to(self.device),
                num_candidates=num_candidates,
                unused_ids=self.unused_ids,
                attention=(self.packed_attention, self.slot_cache),
                on_token=on_token,
                progress=progress,
                meter=meter,
            )
        trim_memory()
        return extended

    def serve(
        self,
        source: generator.RequestSource,
        num_slots: int,
        max_total_tokens: int,
        next_turn: NextTurn,
        on_token: generator.OnToken,
    ) -> None:
        """Serve requests until the source closes. At most `num_slots` requests run at the same time.

        `max_total_tokens`: the maximum number of tokens of one rollout, including its prompt.
        """
        with self.autocast():
            generator.extend(
                self._sampler(),
                [],
                [],
                self.conversation.stop_ids,
                self.version,
                num_slots=num_slots,
                max_total_tokens=max_total_tokens,
                next_turn=next_turn,
                unused_ids=self.unused_ids,
                attention=(self.packed_attention, self.slot_cache),
                source=source,
                on_token=on_token,
            )
        trim_memory()

    def _sampler(self) -> Decoder | HFAdapter | PackedDecoder:
        """The decoder for sampling: with packed weights if these make sampling faster, otherwise the learner's
        decoder."""
        wanted: SamplingWeights = self.sampling_weights
        self._packed = pack_decoder(self.decoder, wanted, self.dtype, self.precision == "exact", self._packed)
        return self._packed or self.decoder

    def _stop_matcher(self, stop_strings: Sequence[str]) -> generator.StopMatcher:
        candidates, matches = self.conversation.stop_matcher(stop_strings)
        candidate_V = torch.zeros(self.decoder.config.vocab_size, dtype=torch.bool)
        rows = min(len(candidate_V), len(candidates))
        candidate_V[:rows] = torch.from_numpy(candidates[:rows])
        return generator.StopMatcher(candidate_V, matches)

    def _close_thoughts(self, rollouts: Sequence[Rollout], budget: int, max_new_tokens: int) -> NextTurn:
        """Return a `next_turn` function that closes each thought whose length reaches the budget."""
        prompt_tokens = {(rollout.problem.id, rollout.key._replace(turn=0)): len(rollout) for rollout in rollouts}

        def next_turn(rollout: Rollout) -> tuple[Rollout, int] | None:
            start = prompt_tokens[rollout.problem.id, rollout.key._replace(turn=0)]
            return close_thought_at_budget(self.conversation, rollout, start, budget, max_new_tokens)

        return next_turn

    @torch.no_grad()
    def score(
        self, rollouts: Sequence[Rollout], temperature: float = 1.0, microbatch_tokens: int = 4_096
    ) -> list[RolloutScores]:
        """Compute the log-probability and the entropy of each token in the loss mask of each rollout.

        The scores are returned in the order of the rollouts.
        """
        results: dict[int, RolloutScores] = {}
        batches = pack_for_scoring(rollouts, microbatch_tokens)
        total = sum(map(len, rollouts))
        for members, batch in tracked("scoring", batches, total, "token", lambda part: len(part[1].tokens)):
            scores = self.batch_scores(batch, temperature)
            logprob, entropy = scores.logprob.cpu().numpy(), scores.entropy.cpu().numpy()
            start = 0
            for i in members:
                end = start + len(rollouts[i])
                results[i] = RolloutScores(logprob[start:end], entropy[start:end])
                start = end
        return [results[i] for i in range(len(rollouts))]

    def update(
        self,
        batches: Sequence[Batch],
        loss_fn: Loss,
        learning_rate: float,
        max_grad_norm: float = 1.0,
        temperature: float = 1.0,
        max_logprob_gap: float = math.inf,
        metrics_fn: MetricsFn | None = None,
    ) -> dict[str, Any]:
        """Make one optimizer step on sum(weight x loss) over all batches, and return the metrics of the step.

        Raises the same errors as `Learner.update`.

        `temperature`: the temperature at which the rollouts were sampled. Sampler and learner must use the same
            distribution.
        """
        score_fn = partial(self.batch_scores, temperature=temperature)
        self._packed = None  # the update changes the weights, so their packed copy is freed before it
        metrics = self.learner.update(
            batches, loss_fn, score_fn, learning_rate, max_grad_norm, max_logprob_gap, metrics_fn
        )
        trim_memory()
        return metrics

    def batch_scores(self, batch: Batch, temperature: float) -> Scores:
        """Compute the log-probability and the entropy of each token of a batch, with the autograd graph."""
        return batch_scores(
            self.decoder, batch, self.packed_attention, self.autocast(), self.device, temperature, self.unused_ids
        )
