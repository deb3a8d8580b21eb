"""What a judge learns from: labelled solutions with marks in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from schoolhouse.judges.labels import Graded, read_prm800k
from schoolhouse.judges.marks import MARK, Where, marked
from schoolhouse.randomness import python_random
from schoolhouse.text.conversation import Conversation
from schoolhouse.types import NAN, Key, Message, Problem, Rollout


class Lesson(NamedTuple):
    """A solution with marks in it, and what each mark should say: [T], nan where there is none."""

    rollout: Rollout
    target: list[float]


def outcome(say: Conversation, rollout: Rollout, score: float | None) -> Graded:
    """The whole solution as one step: right or wrong, or without a label where nobody could judge."""
    label = None if score is None else 1.0 if score >= 1.0 else -1.0
    reply, problem = say.read(rollout), rollout.problem
    text = f"{reply.thought or ''}\n{reply.answer}"
    return Graded(problem.messages[-1].content, (text,), (label,), problem.reference, reply.answer)


def from_rollout(say: Conversation, rollout: Rollout, graded: Graded, delimiter: str, where: Where) -> Lesson:
    """A solution of a model's own, by its tokens: marks where a judge will be asked."""
    spliced, marks = marked(say, rollout, delimiter, where)
    return _lesson(spliced, dict(zip(marks, graded.targets, strict=False)))  # nothing behind the first error


def from_file(path: Path, say: Conversation, delimiter: str) -> list[tuple[Graded, Lesson]]:
    """Labelled solutions of a file, as a policy would have said them, step by step.

    Each step ends with the delimiter, but for the one that ends the solution. The reference answer is not shown.
    """
    (mark,) = say.tokenizer.encode(MARK)
    pairs = []
    for at, graded in enumerate(one.up_to_first_error() for one in read_prm800k(path)):
        problem = Problem(f"{path.name}:{at}", (Message("user", graded.question),), "")
        rollout, targets = say.begin(problem, Key(0, "label", 0, at)), dict[int, float | None]()
        for number, (text, target) in enumerate(zip(graded.steps, graded.targets, strict=True), 1):
            ends = graded.whole and number == len(graded.steps)
            rollout = say.think(rollout, text.strip() + ("" if ends else delimiter))
            targets[len(rollout)] = target
            rollout = rollout.forced([mark])
        pairs.append((graded, _lesson(rollout, targets)))
    return pairs


def dealt(lessons: Sequence[Lesson], seed: int) -> list[Lesson]:
    """The same marks with one another's targets."""
    targets = [target for one in lessons for target in one.target if target == target]
    python_random(Key(seed, "dealt")).shuffle(targets)
    deck = iter(targets)
    return [Lesson(one.rollout, [next(deck) if t == t else t for t in one.target]) for one in lessons]


def _lesson(spliced: Rollout, targets: dict[int, float | None]) -> Lesson:
    """Only marks with a target are learned; what follows the last of them is left out."""
    told = {place: target for place, target in targets.items() if target is not None}
    end = max(told, default=-1) + 1
    written = tuple(place in told for place in range(end))
    cut = Rollout(spliced.problem, spliced.key, spliced.tokens[:end], written, (NAN,) * end, tuple(told)[:1], "given")
    return Lesson(cut, [told.get(place, NAN) for place in range(end)])
