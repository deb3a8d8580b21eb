"""Two attempts: separated by turns, counted, and the identity of their difference."""

import pytest

from schoolhouse.eval.two_attempts import Attempts, first_attempts
from schoolhouse.types import NAN, Completion, Group, Key, Problem, Rollout, Verdict

PROBLEM = Problem("p", (), "1")


def two_turns(sample: int = 0) -> Rollout:
    """A prompt of two, an attempt of two, a request of one, an attempt of one."""
    prompt = Rollout(PROBLEM, Key(0, "t", 0, 0, sample), (1, 2), (False, False), (NAN, NAN))
    return (
        prompt.append_sampled((3, 4), (-0.1, -0.2), "stop", 0)
        .append_context((5,))
        .append_sampled((6,), (-0.3,), "stop", 0)
    )


def groups(*rewards: float | None) -> list[Group]:
    rollouts = tuple(two_turns(g) for g in range(len(rewards)))
    verdicts = tuple(Verdict(reward, "" if reward is not None else "timeout") for reward in rewards)
    return [Group(PROBLEM, rollouts, verdicts)]


def same_answer(rollout: Rollout) -> Completion:
    return Completion(None, "1")


def test_a_first_attempt_is_the_rollout_up_to_the_end_of_its_first_turn():
    (first,) = first_attempts([two_turns()])
    assert first.tokens == (1, 2, 3, 4)
    assert first.turns == (2,)
    assert first.last_turn() == (3, 4)
    assert first.key == Key(0, "t", 0, 0, 0)


def test_shares_are_counted_and_delta_is_their_difference():
    attempts = Attempts.of(groups(1.0, 1.0, 0.0, 0.0), groups(1.0, 0.0, 1.0, 1.0), same_answer)
    assert (attempts.first, attempts.second) == (0.5, 0.75)
    assert (attempts.wrong_to_right, attempts.right_to_wrong) == (0.5, 0.25)
    assert attempts.delta == pytest.approx(0.25)
    assert attempts.changed == 0.0


def test_an_ungraded_attempt_counts_nowhere():
    attempts = Attempts.of(groups(1.0, None), groups(1.0, 1.0), same_answer)
    assert (attempts.first, attempts.second) == (1.0, 1.0)
