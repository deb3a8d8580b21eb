"""The data types that all modules of the package share. All data types are frozen dataclasses or named tuples.

This file imports no other module of the package. New readers of the source code can start with the file types.py.

A rollout is a prefix (a sequence of tokens that can be continued). The policy can extend prefixes, score prefixes, and
be updated on prefixes.

In the whole package the axes of arrays have letters: the letter P means problems, G means rollouts of one problem,
T means tokens of one rollout, N means tokens of a packed batch, and S means sequences of a batch (or slots of the
sampler). The letter V means the vocabulary, C means the model width, H means query heads, K means key heads, D means
the width of a head, and L means layers. A number for a token is stored at the index of that token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

NAN = float("nan")

FinishReason = Literal["open", "stop", "length", "context", "prefill"]
"""The reason why a rollout ended. `open`: no token was sampled yet. `stop`: the policy ended its turn. `length`: the
turn was cut off. `context`: the policy did not write the last tokens (a demonstration, or a turn of a user or tool).
`prefill`: tokens were put into the policy's turn, and the turn continues."""

SCRIPTS = (
    "latin cyrillic greek cjk hiragana katakana hangul arabic hebrew devanagari bengali gurmukhi gujarati oriya tamil "
    "telugu kannada malayalam sinhala thai lao tibetan myanmar georgian armenian ethiopic khmer mongolian"
).split()
"""Scripts that a reward can require for thoughts. The names come from the Unicode names of the letters."""

Precision = Literal["auto", "float32", "bfloat16", "exact"]
"""The precision of matrix products. `auto`: bfloat16 if the machine multiplies it natively, else float32. `exact`:
float32; sampling and learning use the same kernels, so the rest of a batch does not change the result of a row."""


class Key(NamedTuple):
    """The key of one stream of random numbers. Each random number depends only on its key (see randomness.py)."""

    seed: int
    purpose: str
    step: int = 0
    problem: int = 0
    sample: int = 0
    turn: int = 0


class Message(NamedTuple):
    """One turn of a conversation. `thought` is the reasoning that an assistant writes before `content`."""

    role: str
    content: str
    thought: str | None = None


REVISION_REQUEST = "Look again: there may be a mistake. What is the result?"
"""The request for a second attempt. The request does not say whether the first attempt was right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task, with the messages of the prompt and the reference answer.

    The same problem has the same `id` in every run. A report shows separate metrics for each `family` (kind of
    problems). `info` contains more data for the verifier. The policy never sees `info`. `aliases` are other correct
    answers.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    family: str = ""
    source: str = ""
    info: Mapping[str, object] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The policy's last turn as text. A completion is the only output of the policy that a verifier sees.

    `thought` is the text between <think> and </think>, or None if the turn has no thought. `answer` is the text
    after the thought. `complete` is True if the policy ended its turn itself, and False if the turn was cut off. If the
    text has <think> but no </think>, the answer is empty. `token_ids` has the token ids of the turn, or nothing if the
    text does not come from a rollout.
    """

    thought: str | None
    answer: str
    complete: bool = True
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A problem with a thought and an answer, for supervised fine-tuning. `style` names the writing style.

    `untrained` contains indices of assistant messages in the prompt. The loss never includes the messages in
    `untrained`.
    """

    problem: Problem
    thought: str | None
    answer: str
    style: str = ""
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of grading one completion. `reward` is None if the completion could not be graded.

    The reward None is not the same as the reward 0. If the reward is None, `reason` says why. `parts` are named
    components of the reward for reports. Raises ValueError if the reward is not a finite number.
    """

    reward: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a verdict's reward must be a finite number or None, not {self.reward}")
        if self.reward is None and not self.reason:
            raise ValueError("a verdict has neither a reward nor a reason: set `reason` if the reward is None")


class Candidates(NamedTuple):
    """The K most likely tokens at the place of each sampled token, with the sampler's log-probabilities.

    The rows are those of the M sampled tokens of a rollout, in their order.

    ids     [M, K] token ids, int32.
    logprob [M, K] log-probabilities in the whole vocabulary, float32.
    """

    ids: np.ndarray
    logprob: np.ndarray


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout consists of token ids, a mask of the policy's own tokens, and the log-probabilities of these tokens.

    tokens    [T] token ids as they were sampled or inserted. Text is never tokenised a second time.
    loss_mask [T] True if the policy wrote the token (in a demonstration, if the teacher wrote the token).
    logprob   [T] log-probability under the distribution from which the token was sampled, nan for other tokens.
    turns     index of the first token of each turn of the policy.
    finish_reason   the reason why the rollout ended.
    policy_version  version of the policy that sampled the last turn.
    candidates      the most likely tokens at each sampled token, or None if the sampler did not record them.
    """

    problem: Problem
    key: Key
    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprob: tuple[float, ...]
    turns: tuple[int, ...] = ()
    finish_reason: FinishReason = "open"
    policy_version: int = 0
    candidates: Candidates | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.loss_mask) == len(self.logprob):
            raise ValueError(
                f"rollout of {self.problem.id}: tokens, loss_mask and logprob have lengths "
                f"{len(self.tokens)}, {len(self.loss_mask)}, {len(self.logprob)}; they must be equal"
            )
        if self.candidates and len(self.candidates.ids) != sum(self.loss_mask):
            raise ValueError(
                f"rollout of {self.problem.id}: candidates has {len(self.candidates.ids)} rows, but "
                f"{sum(self.loss_mask)} tokens are in the loss mask; give one row per sampled token, or None"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def append_sampled(
        self,
        tokens: Sequence[int],
        logprob: Sequence[float],
        finish: FinishReason,
        version: int,
        candidates: Candidates | None = None,
    ) -> Rollout:
        """Return a copy of the rollout with further sampled tokens at its end.

        The tokens are a new turn of the policy, or they complete a prefilled turn. `candidates` are those of the new
        tokens.
        """
        if candidates and self.candidates:
            import numpy as np  # `school --help` imports this file, and starts sooner without numpy

            candidates = Candidates(*map(np.concatenate, zip(self.candidates, candidates, strict=True)))
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(True for _ in tokens)),
            logprob=(*self.logprob, *logprob),
            turns=self.turns if self.finish_reason == "prefill" else (*self.turns, len(self.tokens)),
            finish_reason=finish,
            policy_version=version,
            candidates=candidates,
        )

    def append_context(self, tokens: Sequence[int]) -> Rollout:
        """Return the rollout with more tokens from a user or a tool.

        The loss mask of the added tokens is False, so the policy is never trained on these tokens.
        """
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(False for _ in tokens)),
            logprob=(*self.logprob, *(NAN for _ in tokens)),
            key=self.key._replace(turn=self.key.turn + 1),
            finish_reason="context",
        )

    def prefill(self, tokens: Sequence[int]) -> Rollout:
        """Return the rollout with tokens inserted into the policy's turn.

        The policy reads the inserted tokens, but is never trained on them. If `tokens` is empty, the policy continues
        its turn with new random numbers.
        """
        begun = self.finish_reason not in ("open", "context")
        return replace(
            self.append_context(tokens),
            finish_reason="prefill",
            turns=self.turns if begun else (*self.turns, len(self.tokens)),
        )

    def truncate(self, end: int) -> Rollout:
        """Return the first `end` tokens of the rollout. The last turn of the result counts as cut off."""
        kept = self.candidates and Candidates(*(rows[: sum(self.loss_mask[:end])] for rows in self.candidates))
        return replace(
            self,
            tokens=self.tokens[:end],
            loss_mask=self.loss_mask[:end],
            logprob=self.logprob[:end],
            turns=tuple(turn for turn in self.turns if turn < end),
            finish_reason="length",
            candidates=kept,
        )

    def with_prompt(self, prompt: Sequence[int]) -> Rollout:
        """Return the same completion with another prompt.

        The new rollout has no log-probabilities and no candidates, because they are only valid for the old prompt.
        """
        start = self.turns[0]
        kept = self.tokens[start:]
        return replace(
            self,
            tokens=(*prompt, *kept),
            loss_mask=(*(False for _ in prompt), *self.loss_mask[start:]),
            logprob=(NAN,) * (len(prompt) + len(kept)),
            turns=tuple(len(prompt) + turn - start for turn in self.turns),
            candidates=None,
        )

    def last_turn(self) -> tuple[int, ...]:
        """Return the token ids of the policy's last turn, without context tokens after the turn."""
        if not self.turns:
            return ()
        start, end = self.turns[-1], len(self.tokens)
        while self.finish_reason != "prefill" and end > start and not self.loss_mask[end - 1]:
            end -= 1
        return self.tokens[start:end]


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem, and one verdict for each rollout."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """The rewards of all graded rollouts, in the order of the rollouts."""
        return tuple(v.reward for v in self.verdicts if v.reward is not None)


class SchoolError(Exception):
    """An error that a user can correct. The message names the file, the line or the key, and how to correct the error.

    The command `school` prints the message without a traceback.
    """
