"""Training examples for reward models: solutions into which label tokens are inserted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from schoolhouse.data.chat import Conversation
from schoolhouse.randomness import python_random
from schoolhouse.reward_models.prm import LABEL_TOKEN, LabelPlaces, insert_label_tokens
from schoolhouse.reward_models.step_labels import LabelledSolution, read_prm800k
from schoolhouse.types import NAN, Key, Message, Problem, Rollout


class Example(NamedTuple):
    """A solution with label tokens in it, and a target for each label token.

    `target`: a number from 0 to 1 for each label token, and nan for all other tokens [T].
    `reference`: an array [T] in which every value is nan.

    Examples of an implicit reward model are different: their solutions have no label tokens. In an example of an
    implicit reward model, the `target` of each token of a solution is the outcome of the solution. For an implicit
    reward model, the field `reference` holds log-probabilities under the model that the reward model is trained from.
    """

    rollout: Rollout
    target: Sequence[float]
    reference: Sequence[float]


def outcome_label(conversation: Conversation, rollout: Rollout, reward: float | None) -> LabelledSolution:
    """Label a whole solution as if it were one step.

    The label is correct or wrong; an ungraded solution has no label.
    """
    label = None if reward is None else 1.0 if reward >= 1.0 else -1.0
    completion, problem = conversation.parse_completion(rollout), rollout.problem
    text = f"{completion.thought or ''}\n{completion.answer}"
    return LabelledSolution(problem.messages[-1].content, (text,), (label,), problem.reference, completion.answer)


def step_example(
    conversation: Conversation,
    rollout: Rollout,
    labelled: LabelledSolution,
    delimiter: str,
    label_places: LabelPlaces,
) -> Example:
    """Make an example from a sampled solution, with a label token at each position that the reward model will score."""
    with_labels, positions = insert_label_tokens(conversation, rollout, delimiter, label_places)
    # not strict: a solution has no labels after its first error
    return _example(with_labels, dict(zip(positions, labelled.targets, strict=False)))


def sequence_example(rollout: Rollout, labelled: LabelledSolution, reference: Sequence[float]) -> Example:
    """Make an example for an implicit reward model, from a sampled solution and the outcome of the solution.

    If the solution has no outcome, the loss mask of the example is empty.
    """
    (target,) = labelled.targets
    if target is None:
        rollout = replace(rollout, loss_mask=(False,) * len(rollout))
    targets = [target if trained and target is not None else NAN for trained in rollout.loss_mask]
    return Example(rollout, targets, reference)


def read_examples(path: Path, conversation: Conversation, delimiter: str) -> list[tuple[LabelledSolution, Example]]:
    """Read labelled solutions from a file. Each example has the form in which a policy would write the solution.

    Each step becomes a thought that ends with the delimiter (the text between steps). The last step of a complete
    solution becomes the answer. The examples do not contain the reference answer.
    """
    (label_id,) = conversation.tokenizer.encode(LABEL_TOKEN)
    pairs = []
    for at, labelled in enumerate(solution.truncate_at_first_error() for solution in read_prm800k(path)):
        problem = Problem(f"{path.name}:{at}", (Message("user", labelled.question),), "")
        rollout = conversation.prompt_rollout(problem, Key(0, "label", 0, at))
        targets: dict[int, float | None] = {}
        for number, (text, target) in enumerate(zip(labelled.steps, labelled.targets, strict=True), 1):
            if labelled.complete and number == len(labelled.steps):
                rollout = conversation.prefill_answer(rollout, text.strip())
            else:
                rollout = conversation.prefill_thought(rollout, text.strip() + delimiter)
            targets[len(rollout)] = target
            rollout = rollout.prefill([label_id])
        pairs.append((labelled, _example(rollout, targets)))
    return pairs


def shuffle_labels(examples: Sequence[Example], seed: int) -> list[Example]:
    """Shuffle the labels between steps, as a control.

    For an implicit reward model, shuffle the labels between whole solutions.
    """
    implicit = any(logprob == logprob for example in examples for logprob in example.reference)
    targets = [[target for target in example.target if target == target] for example in examples]
    pool = [target for own in targets for target in (own[:1] if implicit else own)]
    python_random(Key(seed, "dealt")).shuffle(pool)
    drawn = iter(pool)
    shuffled = [[next(drawn)] * len(own) if implicit else [next(drawn) for _ in own] for own in targets]
    return [
        example._replace(target=[new.pop() if target == target else target for target in example.target])
        for example, new in zip(examples, shuffled, strict=True)
    ]


def _example(with_labels: Rollout, targets: Mapping[int, float | None]) -> Example:
    """Make an example whose loss mask covers only the label tokens that have a target.

    All tokens after the last label token with a target are left out.
    """
    known = {position: target for position, target in targets.items() if target is not None}
    end = max(known, default=-1) + 1
    rollout = Rollout(
        with_labels.problem,
        with_labels.key,
        with_labels.tokens[:end],
        loss_mask=tuple(position in known for position in range(end)),
        logprob=(NAN,) * end,
        turns=tuple(known)[:1],
        finish_reason="context",
    )
    return Example(rollout, [known.get(position, NAN) for position in range(end)], [NAN] * end)
