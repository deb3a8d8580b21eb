"""The desk: many ask at once, each hears what it would hear alone, and who leaves makes room."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.serve.batch_engine import Closed, Desk, Full, Listened, Piece, Ticket
from schoolhouse.types import Key, Message, Problem, Rollout, SchoolError


@pytest.fixture(scope="module")
def policy(taught: Callable[[str], Path]) -> Policy:
    return Policy.load(taught("school:chain?steps=2&styles=full=100"), "float32")


@pytest.fixture
def desk(policy: Policy) -> Iterator[Desk]:
    made = Desk(lambda: policy, slots=4, queue=4)
    yield made
    made.close()


def prefix(policy: Policy, number: int, text: str = "Start at 7. Add 5. Take 3.") -> Rollout:
    return policy.conversation.prompt_rollout(Problem(f"r{number}", (Message("user", text),), ""), Key(number, "t"))


def ticket(policy: Policy, number: int, length: int = 24, **more: Any) -> Ticket:
    return Ticket(prefix(policy, number), length, more.pop("drawing", SamplingParams()), **more)


async def whole(one: Ticket) -> tuple[list[Piece], Rollout]:
    pieces: list[Piece] = []
    async for some in one.pieces():
        for piece in some:
            if isinstance(piece, Rollout):
                return pieces, piece
            pieces.append(piece)
    raise AssertionError("a ticket ends with its rollout")


def run(do: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(do(), 60))  # type: ignore[arg-type]


def test_each_hears_what_it_would_hear_alone(policy: Policy, desk: Desk):
    async def do() -> list[tuple[list[Piece], Rollout]]:
        asked = [ticket(policy, n) for n in range(7)]
        desk.ask(asked)
        return await asyncio.gather(*map(whole, asked))

    for number, (pieces, rollout) in enumerate(run(do)):
        (alone,) = policy.extend([prefix(policy, number)], 24)
        assert rollout.tokens == alone.tokens
        assert tuple(piece.token for piece in pieces) == alone.tokens[len(prefix(policy, number)) :]


def test_who_leaves_makes_room(policy: Policy, desk: Desk):
    """Four that would talk for ever leave after their first token; the fifth gets a slot."""

    async def do() -> Rollout:
        forever = [ticket(policy, n, 120, stop=("never",)) for n in range(4)]
        desk.ask(forever)
        for one in forever:
            await one.ready.wait()
            one.left = True
        last = ticket(policy, 9, 3)
        desk.ask([last])
        return (await whole(last))[1]

    assert len(run(do).last_turn()) <= 3


def test_a_text_ends_an_answer(policy: Policy, desk: Desk):
    async def do() -> Rollout:
        one = ticket(policy, 0, 40, stop=("=",), drawing=SamplingParams(0.0))
        desk.ask([one])
        return (await whole(one))[1]

    rollout = run(do)
    text = policy.conversation.tokenizer.decode(rollout.last_turn())
    assert text.endswith("=")
    assert text.count("=") == 1


def test_a_thought_is_closed_when_its_budget_is_spent(policy: Policy, desk: Desk):
    async def do() -> tuple[list[Piece], Rollout]:
        one = Ticket(begun, 24, SamplingParams(0.0), think=3)
        desk.ask([one])
        return await whole(one)

    begun = policy.conversation.prefill_thought(prefix(policy, 0), "7+5")
    pieces, rollout = run(do)
    _, end, closed = policy.conversation.thought_span(rollout)
    assert closed
    assert end == len(begun) + 3
    assert tuple(piece.token for piece in pieces) == rollout.tokens[len(begun) :]
    (alone,) = policy.extend([begun], 24, thinking_budget=3, temperature=0.0)
    assert rollout.tokens == alone.tokens


def test_the_likeliest_are_told(policy: Policy, desk: Desk):
    async def do() -> list[Piece]:
        one = ticket(policy, 0, 6, top=3, drawing=SamplingParams(0.0))
        desk.ask([one])
        return (await whole(one))[0]

    for piece in run(do):
        assert len(piece.top) == 3
        assert piece.top[0] == (piece.token, pytest.approx(piece.logprob, abs=1e-4))


def test_the_queue_has_an_end_and_lets_nobody_in_by_halves(policy: Policy, desk: Desk):
    async def do() -> None:
        many = [ticket(policy, n, 40) for n in range(8)]
        desk.ask(many)
        with pytest.raises(Full, match="wait already"):
            desk.ask([ticket(policy, 8)])
        await asyncio.gather(*map(whole, many))
        desk.ask([late := ticket(policy, 9)])
        await whole(late)

    run(do)


def test_more_than_can_ever_be_let_in_is_refused_for_good(policy: Policy, desk: Desk):
    async def do() -> None:
        desk.ask([ticket(policy, n) for n in range(desk.slots + desk.queue + 1)])

    with pytest.raises(SchoolError, match="may ask for 8 answers here, not 9") as refused:
        run(do)
    assert not isinstance(refused.value, Full)


def test_what_is_wrong_with_one_ends_that_one_alone(policy: Policy, desk: Desk):
    async def do() -> tuple[Rollout, Any]:
        fine, broken = ticket(policy, 0), ticket(policy, 1, stop=("\ud800",))
        desk.ask([fine, broken])
        said, error = await asyncio.gather(whole(fine), whole(broken), return_exceptions=True)
        assert not isinstance(said, BaseException)
        return said[1], error

    said, error = run(do)
    assert isinstance(error, SchoolError)
    assert said.tokens == policy.extend([prefix(policy, 0)], 24)[0].tokens
    assert desk.broken is None


def test_who_is_not_listened_to_any_more_says_nothing(policy: Policy):
    listened = Listened(policy)
    (whole_,) = listened.extend([prefix(policy, 0)], 24)
    assert whole_.tokens == policy.extend([prefix(policy, 0)], 24)[0].tokens
    listened.leave()
    with pytest.raises(Closed, match="nobody waits"):
        listened.extend([prefix(policy, 0)], 24)


def test_what_is_being_said_ends_with_its_next_token_when_nobody_listens(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    listened, extend = Listened(policy), policy.extend

    def left_at_the_first_token(*given: Any, on_token: Any, **named: Any) -> list[Rollout]:
        def heard(*token: Any) -> bool:
            listened.leave()
            return on_token(*token)

        return extend(*given, on_token=heard, **named)

    monkeypatch.setattr(policy, "extend", left_at_the_first_token)
    (said,) = listened.extend([prefix(policy, 0)], 24)
    assert len(said) == len(prefix(policy, 0)) + 1


def test_closing_finishes_what_runs(policy: Policy):
    desk = Desk(lambda: policy, slots=2)

    async def do() -> None:
        asked = [ticket(policy, n, 24) for n in range(5)]
        desk.ask(asked)
        await asked[0].ready.wait()
        closing = asyncio.to_thread(desk.close)
        found = await asyncio.gather(closing, *map(whole, asked))
        assert len(found) == 6
        with pytest.raises(Closed, match="about to end"):
            desk.ask([ticket(policy, 9)])

    run(do)


def test_a_sampler_that_dies_is_heard_of(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    def dies(*_: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(Desk, "on_logits", dies)
    desk = Desk(lambda: policy)

    async def do() -> None:
        desk.ask([one := ticket(policy, 0)])
        with pytest.raises(Closed, match="no more memory"):
            await whole(one)
        with pytest.raises(Closed, match="no more memory"):
            desk.ask([ticket(policy, 1)])

    run(do)


def test_a_model_that_cannot_be_loaded_is_told_at_once():
    def load() -> Policy:
        raise SchoolError("no such folder")

    with pytest.raises(SchoolError, match="no such folder"):
        Desk(load)
