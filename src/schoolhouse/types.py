"""The data types that every module passes around: plain, frozen, and without imports of the package. Read this first.

A rollout is a prefix. The policy does three things with prefixes: extend them, score them, be updated on them.

One legend of axis letters for the whole package: P problems, G rollouts of a problem, T tokens of one rollout,
N tokens of a packed batch, S sequences of a batch (or slots of the sampler), V vocabulary, C width, H query heads,
K key heads, D head width, L layers. Every per-token number sits at the token it is about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

NAN = float("nan")

FinishReason = Literal["open", "stop", "length", "context", "prefill"]
"""Why a rollout ended: `open` nothing was sampled yet; `stop` the policy ended its turn; `length` it was cut off;
`context` the last tokens are not the policy's (a demonstration, or a turn of a user or tool); `prefill` tokens were put
into the policy's turn, which goes on."""

SCRIPTS = (
    "latin cyrillic greek cjk hiragana katakana hangul arabic hebrew devanagari bengali gurmukhi gujarati oriya tamil "
    "telugu kannada malayalam sinhala thai lao tibetan myanmar georgian armenian ethiopic khmer mongolian"
).split()
"""Scripts that a reward can ask thoughts to be written in, by Unicode's names of their letters."""

Precision = Literal["auto", "float32", "bfloat16", "exact"]
"""Of matrix products. `auto`: bfloat16 where the machine multiplies it natively, else float32; `exact`: float32 by the
same kernels in sampling and learning, whatever else is in a batch."""


class Key(NamedTuple):
    """Names one stream of random numbers. A draw depends on its key and nothing else (see randomness.py)."""

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
"""The request for a second attempt. It does not say whether the first was right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A task instance: the messages of its prompt, and the reference answer.

    `id` is stable: the same instance has the same id in every run. `family` groups problems in reports.
    `info` holds what a verifier needs beyond the reference; the policy never sees it.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    family: str = ""
    source: str = ""
    info: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """The policy's last turn as text. A verifier sees this and nothing else of the policy.

    `thought` is the text between <think> and </think> (None without any), `answer` is the text behind it, `complete` is
    whether the policy ended its turn itself (False: it was cut off). A completion whose thought was never closed has an
    empty answer.
    """

    thought: str | None
    answer: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A problem with a thought and an answer, for supervised fine-tuning. `style` names how it was written."""

    problem: Problem
    thought: str | None
    answer: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward, or None: *could not be graded*, with the reason. None is never a zero in disguise.

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
    """A prefix: token ids, which of them the policy sampled, and their log-probabilities.

    tokens    [T] ids as sampled or spliced, never re-tokenised
    loss_mask [T] True where the policy (or, in a demonstration, the teacher it imitates) wrote this token
    logprob   [T] log-probability under the transform that sampled it; nan where nothing was sampled
    turns     index of the first token of each turn of the policy
    finish_reason   why it ended
    policy_version  of the policy that sampled the last turn
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
        """Tokens sampled by the policy: a new turn, or the rest of a turn that was prefilled."""
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
        """Tokens of a user or a tool: never trained on, by construction."""
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(False for _ in tokens)),
            logprob=(*self.logprob, *(NAN for _ in tokens)),
            key=self.key._replace(turn=self.key.turn + 1),
            finish_reason="context",
        )

    def prefill(self, tokens: Sequence[int]) -> Rollout:
        """Tokens put into the policy's turn, or at its beginning: read, never trained on.

        Without any tokens, the policy goes on within its turn, with new random numbers.
        """
        begun = self.finish_reason not in ("open", "context")
        return replace(
            self.append_context(tokens),
            finish_reason="prefill",
            turns=self.turns if begun else (*self.turns, len(self.tokens)),
        )

    def truncate(self, end: int) -> Rollout:
        """Its first `end` tokens, as if the last turn had been cut off there."""
        return replace(
            self,
            tokens=self.tokens[:end],
            loss_mask=self.loss_mask[:end],
            logprob=self.logprob[:end],
            turns=tuple(turn for turn in self.turns if turn < end),
            finish_reason="length",
        )

    def with_prompt(self, prompt: Sequence[int]) -> Rollout:
        """The same tokens behind another prompt. Log-probabilities are dropped: they were about the old one."""
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
        """Ids of the policy's last turn, without context behind it."""
        if not self.turns:
            return ()
        start, end = self.turns[-1], len(self.tokens)
        while self.finish_reason != "prefill" and end > start and not self.loss_mask[end - 1]:
            end -= 1
        return self.tokens[start:end]


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem with their verdicts."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Rewards of the graded rollouts, in order."""
        return tuple(v.reward for v in self.verdicts if v.reward is not None)


class SchoolError(Exception):
    """An error that a user can fix: its message names the file, the line or key, and what to do. No traceback."""
