"""The nouns. Plain frozen data that every other module passes around; imports nothing of ours. Read this first.

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
"""Why a rollout ended: `open` nothing said yet, `stop` the policy ended its turn, `length` it was cut off,
`given` the last words are not the policy's (a demonstration, or a user's or tool's turn), `forced` they were put into
its mouth and its turn goes on."""

SCRIPTS = (
    "latin cyrillic greek cjk hiragana katakana hangul arabic hebrew devanagari bengali gurmukhi gujarati oriya tamil "
    "telugu kannada malayalam sinhala thai lao tibetan myanmar georgian armenian ethiopic khmer mongolian"
).split()
"""Scripts that thoughts may be asked for in, by Unicode's names of their letters."""
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
    """One turn of a conversation. `thought` is what an assistant thinks before it says `content`."""

    role: str
    content: str
    thought: str | None = None


REVISION_REQUEST = "Look again: there may be a mistake. What is the result?"
"""A request for a second attempt that says nothing about whether the first was right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to answer: the messages before the answer, and the key to it.

    `id` is stable: the same instance has the same id in every run. `family` groups problems in reports.
    `info` carries what a verifier needs beyond the reference (never shown to the policy).
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    family: str = ""
    source: str = ""
    info: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy said in its last turn, as text. A verifier sees this and nothing else of the policy.

    `thought` is what stands between <think> and </think> (None: it did not think), `answer` is what follows the
    thinking, `complete` is whether the policy ended its turn itself (False: it was cut off).
    A reply whose thinking was never closed has an empty answer.
    """

    thought: str | None
    answer: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A problem worked by somebody: material for supervised fine-tuning. `hand` names the style of the worker."""

    problem: Problem
    thought: str | None
    answer: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score, or None: *could not judge*, with the reason. None is never a zero in disguise.

    `parts` are named components of the score (for reports). Raises ValueError for a score that is not finite.
    """

    reward: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a verdict's score must be a finite number or None, not {self.reward}")
        if self.reward is None and not self.reason:
            raise ValueError("a verdict without a score must say why in `reason`")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prefix: the ids so far, who said each, and how likely the policy found what it said itself.

    tokens   [T] ids as sampled or spliced, never re-tokenised
    loss_mask [T] True where the policy (or, in a demonstration, the teacher it imitates) said this token
    logprob  [T] log-probability under the transform that sampled it; nan where nobody sampled
    turns    index of the first token of each turn the policy wrote
    version  of the policy that wrote the last turn
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
        """The policy says `tokens`: a new turn, unless words were forced on it within the last."""
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
        """Somebody else says `tokens` (user, tool): never trained on, by construction."""
        return replace(
            self,
            tokens=(*self.tokens, *tokens),
            loss_mask=(*self.loss_mask, *(False for _ in tokens)),
            logprob=(*self.logprob, *(NAN for _ in tokens)),
            key=self.key._replace(turn=self.key.turn + 1),
            finish_reason="context",
        )

    def prefill(self, tokens: Sequence[int]) -> Rollout:
        """Words put into the policy's mouth within its turn, or as its beginning: read, never trained on.

        Without any, the policy goes on within its turn, with new random numbers.
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
        """The same words behind another prompt. Sampled log-probabilities are dropped: they were about the old one."""
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
        """Ids of the policy's last turn (without what others said after it)."""
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
        """Scores of the rollouts that could be judged, in order."""
        return tuple(v.reward for v in self.verdicts if v.reward is not None)


class SchoolError(Exception):
    """What a user can mend: the message names the file, the line or key, and what to do. Shown without a traceback."""
