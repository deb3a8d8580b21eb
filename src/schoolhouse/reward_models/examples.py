"""What a judge learns from: labelled solutions with marks in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from schoolhouse.data.chat import Conversation
from schoolhouse.randomness import python_random
from schoolhouse.reward_models.prm import LABEL_TOKEN, LabelPlaces, insert_label_tokens
from schoolhouse.reward_models.step_labels import LabelledSolution, read_prm800k
from schoolhouse.types import NAN, Key, Message, Problem, Rollout


class Example(NamedTuple):
    """A solution with marks in it, and what each mark should say: [T], nan where there is none.

    For an implicit judge a solution as it was said, its outcome at each token of it, and how likely the model it was
    trained from finds each (`reference` [T], nan for the others).
    """

    rollout: Rollout
    target: Sequence[float]
    reference: Sequence[float]


def outcome_label(conversation: Conversation, rollout: Rollout, reward: float | None) -> LabelledSolution:
    """The whole solution as one step: right or wrong, or without a label where nobody could judge."""
    label = None if reward is None else 1.0 if reward >= 1.0 else -1.0
    reply, problem = conversation.parse_completion(rollout), rollout.problem
    text = f"{reply.thought or ''}\n{reply.answer}"
    return LabelledSolution(problem.messages[-1].content, (text,), (label,), problem.reference, reply.answer)


def step_example(
    conversation: Conversation, rollout: Rollout, labelled: LabelledSolution, delimiter: str, label_places: LabelPlaces
) -> Example:
    """A solution of a model's own, by its tokens: marks where a judge will be asked."""
    spliced, marks = insert_label_tokens(conversation, rollout, delimiter, label_places)
    return _lesson(spliced, dict(zip(marks, labelled.targets, strict=False)))  # nothing behind the first error


def sequence_example(rollout: Rollout, labelled: LabelledSolution, reference: Sequence[float]) -> Example:
    """A solution of a model's own and its outcome, for an implicit judge; nothing to learn without an outcome."""
    (target,) = labelled.targets
    if target is None:
        rollout = replace(rollout, loss_mask=(False,) * len(rollout))
    return Example(rollout, [target if w and target is not None else NAN for w in rollout.loss_mask], reference)


def read_examples(path: Path, conversation: Conversation, delimiter: str) -> list[tuple[LabelledSolution, Example]]:
    """Labelled solutions of a file, as a policy would have said them: thoughts that end with the delimiter each and,
    where the solution is whole, its last step as the answer. The reference answer is not shown.
    """
    (mark,) = conversation.tokenizer.encode(LABEL_TOKEN)
    pairs = []
    for at, graded in enumerate(one.truncate_at_first_error() for one in read_prm800k(path)):
        problem = Problem(f"{path.name}:{at}", (Message("user", graded.question),), "")
        rollout, targets = conversation.prompt_rollout(problem, Key(0, "label", 0, at)), dict[int, float | None]()
        for number, (text, target) in enumerate(zip(graded.steps, graded.targets, strict=True), 1):
            ends = graded.complete and number == len(graded.steps)
            rollout = (
                conversation.prefill_answer(rollout, text.strip())
                if ends
                else conversation.prefill_thought(rollout, text.strip() + delimiter)
            )
            targets[len(rollout)] = target
            rollout = rollout.prefill([mark])
        pairs.append((graded, _lesson(rollout, targets)))
    return pairs


def shuffle_labels(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same marks with one another's targets; the same solutions with one another's outcomes."""
    whole = any(known == known for one in examples for known in one.reference)
    told = [[target for target in one.target if target == target] for one in examples]
    deck = [target for few in told for target in (few[:1] if whole else few)]
    python_random(Key(seed, "dealt")).shuffle(deck)
    new = iter(deck)
    hands = [[next(new)] * len(few) if whole else [next(new) for _ in few] for few in told]
    return [
        one._replace(target=[hand.pop() if t == t else t for t in one.target])
        for one, hand in zip(examples, hands, strict=True)
    ]


def _lesson(spliced: Rollout, targets: dict[int, float | None]) -> Example:
    """Only marks with a target are learned; what follows the last of them is left out."""
    told = {place: target for place, target in targets.items() if target is not None}
    end = max(told, default=-1) + 1
    written = tuple(place in told for place in range(end))
    cut = Rollout(spliced.problem, spliced.key, spliced.tokens[:end], written, (NAN,) * end, tuple(told)[:1], "context")
    return Example(cut, [told.get(place, NAN) for place in range(end)], [NAN] * end)
