"""What a judge learns from: labelled solutions with marks in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from schoolhouse.judges.labels import Graded, read_prm800k
from schoolhouse.judges.marks import Where, marked
from schoolhouse.randomness import python_random
from schoolhouse.tasks.task import Task
from schoolhouse.text.conversation import Conversation
from schoolhouse.types import NAN, Demonstration, Key, Message, Problem, Rollout


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


def from_file(path: Path, say: Conversation, task: Task) -> list[tuple[Rollout, Graded]]:
    """Labelled solutions of a file as the policy would have said them. The reference answer is not shown."""
    pairs = []
    for at, graded in enumerate(one.up_to_first_error() for one in read_prm800k(path)):
        problem = Problem(f"{path.name}:{at}", (Message("user", graded.question),), "")
        told = Demonstration(problem, task.delimiter.join(graded.steps), graded.answer)
        pairs.append((say.demonstrate(told, Key(0, "label", 0, at)), graded))
    return pairs


def lesson(say: Conversation, rollout: Rollout, graded: Graded, delimiter: str, where: Where) -> Lesson:
    """Marks behind the steps that have a label; what follows the last of them is left out."""
    spliced, marks = marked(say, rollout, delimiter, where)
    told = {place: target for place, target in zip(marks, graded.targets, strict=False) if target is not None}
    end = max(told, default=-1) + 1
    written = tuple(place in told for place in range(end))
    cut = Rollout(spliced.problem, spliced.key, spliced.tokens[:end], written, (NAN,) * end, tuple(told)[:1], "given")
    return Lesson(cut, [told.get(place, NAN) for place in range(end)])


def dealt(lessons: Sequence[Lesson], seed: int) -> list[Lesson]:
    """The same marks with one another's targets."""
    targets = [target for one in lessons for target in one.target if target == target]
    python_random(Key(seed, "dealt")).shuffle(targets)
    deck = iter(targets)
    return [Lesson(one.rollout, [next(deck) if t == t else t for t in one.target]) for one in lessons]
