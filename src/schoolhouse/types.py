"""The data types that every module passes around. They are plain and frozen, and this file imports no other module of
the package. Read this file first.

A rollout is a prefix. The policy can extend prefixes, score prefixes, and be updated on prefixes.

The whole package uses these axis letters: P problems, G rollouts of a problem, T tokens of one rollout,
N tokens of a packed batch, S sequences of a batch (or slots of the sampler), V vocabulary, C width, H query heads,
K key heads, D head width, L layers. A per-token number is stored at the index of the token that it describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

NAN = float("nan")

FinishReason = Literal["open", "stop", "length", "context", "prefill"]
"""Why a rollout ended. `open`: no token was sampled yet. `stop`: the policy ended its turn. `length`: the turn was cut
off. `context`: the policy did not write the last tokens (a demonstration, or a turn of a user or tool). `prefill`:
tokens were put into the policy's turn, and the turn continues."""

SCRIPTS = (
    "latin cyrillic greek cjk hiragana katakana hangul arabic hebrew devanagari bengali gurmukhi gujarati oriya tamil "
    "telugu kannada malayalam sinhala thai lao tibetan myanmar georgian armenian ethiopic khmer mongolian"
).split()
"""Scripts that a reward can require for thoughts. The names come from the Unicode names of the letters."""

Precision = Literal["auto", "float32", "bfloat16", "exact"]
"""The precision of matrix products. `auto`: bfloat16 if the machine multiplies it natively, else float32. `exact`:
float32; sampling and learning use the same kernels, so the rest of a batch does not change the result of a row."""


class Key(NamedTuple):
    """The name of one stream of random numbers. A random number depends only on its key (see randomness.py)."""

    seed: int
    purpose: str
    step: int = 0
    problem: int = 0
    sample: int = 0
    turn: int = 0


class Message(NamedTuple):
    """One turn of a conversation. `thought` is the reasoning of an assistant before its `content`."""

    role: str
    content: str
    thought: str | None = None


REVISION_REQUEST = "Look again: there may be a mistake. What is the result?"
"""The request for a second attempt. The request does not say whether the first attempt was right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A task instance: the messages of its prompt, and the reference answer.

    `id` is stable: the same instance has the same id in every run. `family` groups problems in reports.
    `info` holds further data for the verifier, beside the reference. The policy never sees `info`. `aliases` are other
    answers that count as the reference.
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
    """The policy's last turn as text. This is the only output of the policy that a verifier sees.

    `thought` is the text between <think> and </think>; it is None if the turn has no thought. `answer` is the text
    after the thought. `complete` is True if the policy ended its turn itself, and False if the turn was cut off. If the
    thought was never closed, the answer is empty.
    """

    thought: str | None
    answer: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A problem with a thought and an answer, for supervised fine-tuning. `style` names the style of the writing.

    `untrained` are the indices of assistant messages of the problem that are never trained.
    """

    problem: Problem
    thought: str | None
    answer: str
    style: str = ""
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward, or None if the completion could not be graded (`reason` says why). None does not mean reward 0.

    `parts` are named components of the reward (for reports). Raises ValueError for a reward that is not finite.
    """

    reward: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a verdict's reward must be a finite number or None, not {self.reward}")
        if self.reward is None and not self.reason:
            raise ValueError("a verdict without a reward must say why in `reason`")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prefix: token ids, a mask of the tokens that the policy sampled, and the log-probabilities of these tokens.

    tokens    [T] ids as they were sampled or inserted; text is never tokenised again
    loss_mask [T] True if the policy wrote this token (in a demonstration: if the imitated teacher wrote it)
    logprob   [T] log-probability under the distribution that the token was sampled from; nan for other tokens
    turns     index of the first token of each turn of the policy
    finish_reason   why the rollout ended
    policy_version  version of the policy that sampled the last turn
    """

    problem: Problem
    key: Key
    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprob: tuple[float, ...]
    turns: tuple[int, ...] = ()
    finish_reason: FinishReason = "open"
    policy_version: int = 0

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.loss_mask) == len(self.logprob):
            raise ValueError(
                f"rollout of {self.problem.id}: tokens, loss_mask and logprob have lengths "
                f"{len(self.tokens)}, {len(self.loss_mask)}, {len(self.logprob)}; they must be equal"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def append_sampled(
        self, tokens: Sequence[int], logprob: Sequence[float], finish: FinishReason, version: int
    ) -> Rollout:
        """The rollout with more sampled tokens: a new turn of the policy, or the rest of a prefilled turn."""
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(True for _ in tokens)),
            logprob=(*self.logprob, *logprob),
            turns=self.turns if self.finish_reason == "prefill" else (*self.turns, len(self.tokens)),
            finish_reason=finish,
            policy_version=version,
        )

    def append_context(self, tokens: Sequence[int]) -> Rollout:
        """The rollout with more tokens of a user or a tool. The loss mask is False there, so they are never trained."""
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(False for _ in tokens)),
            logprob=(*self.logprob, *(NAN for _ in tokens)),
            key=self.key._replace(turn=self.key.turn + 1),
            finish_reason="context",
        )

    def prefill(self, tokens: Sequence[int]) -> Rollout:
        """The rollout with tokens put into the policy's turn. The policy reads these tokens, but never trains on them.

        If `tokens` is empty, the policy continues its turn with new random numbers.
        """
        begun = self.finish_reason not in ("open", "context")
        return replace(
            self.append_context(tokens),
            finish_reason="prefill",
            turns=self.turns if begun else (*self.turns, len(self.tokens)),
        )

    def truncate(self, end: int) -> Rollout:
        """The first `end` tokens of the rollout, as if the last turn had been cut off there."""
        return replace(
            self,
            tokens=self.tokens[:end],
            loss_mask=self.loss_mask[:end],
            logprob=self.logprob[:end],
            turns=tuple(turn for turn in self.turns if turn < end),
            finish_reason="length",
        )

    def with_prompt(self, prompt: Sequence[int]) -> Rollout:
        """The same completion after another prompt, without log-probabilities: they belong to the old prompt."""
        start = self.turns[0]
        kept = self.tokens[start:]
        return replace(
            self,
            tokens=(*prompt, *kept),
            loss_mask=(*(False for _ in prompt), *self.loss_mask[start:]),
            logprob=(NAN,) * (len(prompt) + len(kept)),
            turns=tuple(len(prompt) + turn - start for turn in self.turns),
        )

    def last_turn(self) -> tuple[int, ...]:
        """Ids of the policy's last turn, without the context after it."""
        if not self.turns:
            return ()
        start, end = self.turns[-1], len(self.tokens)
        while self.finish_reason != "prefill" and end > start and not self.loss_mask[end - 1]:
            end -= 1
        return self.tokens[start:end]


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem, and the verdict on each of them."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Rewards of the graded rollouts, in order."""
        return tuple(v.reward for v in self.verdicts if v.reward is not None)


class SchoolError(Exception):
    """An error that a user can fix. The message names the file, the line or key, and the fix. No traceback is shown."""
