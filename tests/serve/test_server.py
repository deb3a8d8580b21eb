"""The server, in a process of its own, with the client that everybody uses."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)

from live_server import Listening, get, listening
from schoolhouse.policy.logprobs import token_logprobs
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem

QUESTION = "Start at 7. Add 5. Take 3."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


KEY = "open sesame"


def serving(model: Path, *options: str) -> AbstractContextManager[Listening]:
    return listening("serve", str(model), "--name", "tiny", *options, ready="/health")


CLIENTS: list[OpenAI] = []


def client(server: Listening, key: str = "none") -> Any:  # its overloads are more than a type checker bears
    CLIENTS.append(OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0))
    return CLIENTS[-1]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    """An open connection is a warning, and a warning an error, whenever it happens to be collected."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


@pytest.fixture(scope="module")
def ask(server: Listening) -> OpenAI:
    return client(server)


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    return Policy.load(model)


def greedy(policy: Policy, length: int = 24) -> tuple[str, str, tuple[int, ...]]:
    say = policy.conversation
    asked = say.prompt_rollout(Problem("p", (Message("user", QUESTION),), ""), Key(0, "t"))
    (said,) = policy.extend([asked], length, temperature=0.0)
    reply = say.parse_completion(said)
    return reply.thought or "", reply.answer, said.last_turn()


# --- chat


def test_a_greedy_answer_is_the_samplers(ask: Any, policy: Policy):
    thought, answer, said = greedy(policy)
    found = ask.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=24)
    (choice,) = found.choices
    assert choice.message.content == answer
    assert ((choice.message.model_extra or {})["reasoning_content"] or "") == thought
    assert found.usage
    assert found.usage.completion_tokens == len(said)
    assert choice.finish_reason == ("stop" if said[-1] in policy.conversation.stop_ids else "length")


def test_a_stream_is_the_whole_in_pieces(ask: Any):
    options: Any = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 24, "n": 2}
    whole = ask.chat.completions.create(**options)
    said, reasons, usage = {0: ["", ""], 1: ["", ""]}, {}, None
    for chunk in ask.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index][0] += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            said[choice.index][1] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    for choice in whole.choices:
        thought = (choice.message.model_extra or {})["reasoning_content"] or ""
        assert said[choice.index] == [thought, choice.message.content]
        assert reasons[choice.index] == choice.finish_reason
    assert usage == whole.usage


def test_a_seed_says_the_same_again_and_others_differ(ask: Any):
    def say(**more: Any) -> str:
        found = ask.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, temperature=1.5, **more)
        return json.dumps([choice.message.model_dump() for choice in found.choices])

    assert say(seed=1, n=3) == say(seed=1, n=3)
    assert say(seed=1) != say(seed=2)
    assert say() != say()


def test_logprobs_are_those_of_the_tokens_said(ask: Any, policy: Policy):
    found = ask.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2
    )
    assert found.choices[0].logprobs
    content = found.choices[0].logprobs.content or []
    _, _, said = greedy(policy, 6)
    say = policy.conversation
    prompt = say.prompt((Message("user", QUESTION),))
    known = token_logprobs(policy, [*prompt, *said], 2)[len(prompt) :]
    assert [one.token for one in content] == [say.tokenizer.decode([token]) for token in said]
    assert [one.logprob for one in content] == pytest.approx([one.logprob for one in known], abs=0.02)
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert content[0].token.encode() == bytes(content[0].bytes or [])


def test_a_stop_text_ends_an_answer_before_it(ask: Any, policy: Policy):
    thought, answer, _ = greedy(policy)
    text = (thought + answer)[2:4]
    options: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 24, "stop": [text]}
    (choice,) = ask.chat.completions.create(**options).choices
    said = ((choice.message.model_extra or {})["reasoning_content"] or "") + (choice.message.content or "")
    assert said == (thought + answer).partition(text)[0]
    assert choice.finish_reason == "stop"
    streamed = ""
    for chunk in ask.chat.completions.create(**options, stream=True):
        delta = chunk.choices[0].delta
        streamed += ((delta.model_extra or {}).get("reasoning_content") or "") + (delta.content or "")
    assert streamed == said


def test_a_search_votes_and_tells_what_it_cost(ask: Any):
    found = ask.chat.completions.create(
        model="tiny", messages=MESSAGES, extra_body={"search": "vote?samples=4&length=16", "budget": 64}
    )
    extra: Any = found.model_extra
    assert extra["search"]["tokens"] <= 64
    assert sum(count for _, count in extra["search"]["votes"]) <= 4
    assert "answers" in extra["search"]["end"]


# --- completions


def test_text_goes_on_as_the_sampler_says(ask: Any, policy: Policy):
    say = policy.conversation
    ids = list(say.prompt((Message("user", QUESTION),)))
    _, _, said = greedy(policy, 12)
    found = ask.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=12)
    assert found.choices[0].text == say.tokenizer.decode([token for token in said if token not in say.stop_ids])
    streamed = ask.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text


def test_an_echo_tells_how_likely_a_text_is(ask: Any, policy: Policy):
    """What lm-eval asks to compare answers."""
    text = "7+5=2 2-3=9"
    found = ask.completions.create(model="tiny", prompt=[text, "7"], echo=True, max_tokens=0, logprobs=1)
    known = token_logprobs(policy, policy.conversation.tokenizer.encode(text), 1)
    first, second = found.choices
    assert (first.text, second.text) == (text, "7")
    assert first.logprobs
    assert first.logprobs.token_logprobs
    assert first.logprobs.token_logprobs[0] is None
    assert first.logprobs.token_logprobs[1:] == pytest.approx([one.logprob for one in known[1:]], abs=1e-5)
    assert first.logprobs.top_logprobs
    best = [max(top, key=lambda word: top[word]) for top in first.logprobs.top_logprobs[1:]]
    tokenizer = policy.conversation.tokenizer
    assert best == [tokenizer.decode([one.top_logprobs[0][0]]) for one in known[1:]]


def test_many_ask_at_once_and_none_is_mixed_up(ask: Any):
    def say(seed: int) -> str:
        found = ask.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, seed=seed, temperature=1.3)
        return found.choices[0].message.model_dump_json()

    alone = [say(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as crowd:
        assert list(crowd.map(say, range(12))) == alone


# --- what is refused


@pytest.mark.parametrize(
    "change, told",
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"max_tokens": 100_000}, "this model reads 256 tokens"),
        ({"messages": [{"role": "user", "content": "7 " * 400}]}, "this model reads 256 tokens"),
        ({"n": 1000}, "n"),
        ({"stop": [""]}, "empty text"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"extra_body": {"search": "oracle"}}, "unknown search"),
        ({"extra_body": {"search": "best_of_n?values=/etc"}}, "the server's own"),
        ({"top_logprobs": 3}, "needs `logprobs`"),
        ({"top_p": 0.5, "extra_body": {"search": "vote"}}, "takes temperature and max_tokens"),
        ({"extra_body": {"budget": 64}}, "what a `search` may spend"),
        ({"extra_body": {"search": "vote", "budget": 1e9}}, "less than or equal to 65536"),
    ],
)
def test_a_malformed_request_gets_400_and_the_reason(ask: Any, change: dict[str, Any], told: str):
    with pytest.raises(BadRequestError, match=told):
        ask.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **change})


def test_a_body_that_is_no_json_gets_400(server: Listening):
    status, text, _ = get(f"{server.url}/v1/completions", {"Content-Type": "application/json"}, b"{")
    assert (status, json.loads(text)["error"]["message"]) == (400, "the body is not JSON")


def test_another_model_is_not_here(ask: Any):
    with pytest.raises(NotFoundError, match="this server has `tiny`"):
        ask.chat.completions.create(model="gpt-9", messages=MESSAGES)


def test_more_than_may_wait_get_429(server: Listening, ask: Any):
    asked = {"model": "tiny", "messages": MESSAGES, "n": 16, "temperature": 3.0, "max_tokens": 200}
    with ThreadPoolExecutor(1) as crowd:
        first = crowd.submit(ask.chat.completions.create, **asked)
        while not json.loads(get(f"{server.url}/health")[1])["running"]:
            assert not first.done()
        with pytest.raises(RateLimitError, match="wait already"):
            ask.chat.completions.create(**asked)
        assert len(first.result().choices) == 16


def test_more_than_can_ever_wait_get_400(ask: Any):
    with pytest.raises(BadRequestError, match="may ask for 16 answers here, not 17"):
        ask.chat.completions.create(model="tiny", messages=MESSAGES, n=17)


@pytest.mark.parametrize("field", ["stop", "search", "model", "user"])
def test_half_a_character_is_refused_wherever_it_stands(server: Listening, field: str):
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 4, field: "\ud800"}).encode()
    status, text, _ = get(f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}, body)
    assert status == 400
    assert "half a character" in text
    assert json.loads(get(f"{server.url}/health")[1])["status"] == "ok"


def test_a_temperature_next_to_nothing_takes_the_likeliest(ask: Any):
    said = [ask.chat.completions.create(model="tiny", messages=MESSAGES, temperature=t) for t in (0, 1e-30)]
    assert said[0].choices[0].message == said[1].choices[0].message


@pytest.mark.parametrize("header, value, status", [("Origin", "http://evil.test", 403), ("Host", "evil.test", 421)])
def test_pages_of_others_are_refused(server: Listening, header: str, value: str, status: int):
    found, _, headers = get(f"{server.url}/v1/models", {header: value})
    assert found == status
    assert "access-control-allow-origin" not in {name.lower() for name in headers}


def test_pages_of_an_origin_that_was_let_in_may_ask(model: Path):
    friend = {"Origin": "http://friend.test"}
    with serving(model, "--key", KEY, "--origins", friend["Origin"]) as open_:
        ahead = {**friend, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        with urlopen(Request(f"{open_.url}/v1/chat/completions", headers=ahead, method="OPTIONS")) as found:
            assert found.status == 204
            assert found.headers["access-control-allow-origin"] == friend["Origin"]
            assert "authorization" in found.headers["access-control-allow-headers"]
        status, _, headers = get(f"{open_.url}/v1/models", {**friend, "Authorization": f"Bearer {KEY}"})
        told = {name.lower(): value for name, value in headers.items()}
        assert (status, told["access-control-allow-origin"]) == (200, friend["Origin"])
        assert get(f"{open_.url}/v1/models", friend)[0] == 401  # the key is still asked for


def test_its_own_pages_may_ask(server: Listening):
    status, text, _ = get(f"{server.url}/v1/models", {"Origin": server.url})
    assert (status, json.loads(text)["data"][0]["id"]) == (200, "tiny")


def test_a_key_is_asked_for(model: Path):
    with serving(model, "--key", KEY) as locked:
        assert client(locked, KEY).models.list().data[0].id == "tiny"
        with pytest.raises(AuthenticationError, match="missing or wrong"):
            client(locked, "guess").models.list()
        assert get(f"{locked.url}/api/leaderboard")[0] == 401
        assert get(f"{locked.url}/")[0] == 200  # the page asks for the key itself


def test_what_takes_too_long_gets_504(model: Path):
    with serving(model, "--seconds", "0.001") as hurried, pytest.raises(APIStatusError) as error:
        client(hurried).chat.completions.create(model="tiny", messages=MESSAGES)
    assert error.value.status_code == 504


# --- coming and going


def test_it_says_how_it_is(server: Listening):
    assert json.loads(get(f"{server.url}/health")[1])["status"] == "ok"
    _, numbers, _ = get(f"{server.url}/metrics")
    assert "schoolhouse_tokens_total" in numbers
    assert 'schoolhouse_requests_total{status="200"}' in numbers


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_slots(server: Listening, ask: Any, streams: bool):
    def tokens() -> int:
        _, numbers, _ = get(f"{server.url}/metrics")
        return int(
            next(line.split()[1] for line in numbers.splitlines() if line.startswith("schoolhouse_tokens_total"))
        )

    asked = {"model": "tiny", "messages": MESSAGES, "n": 16, "temperature": 3.0, "seed": 5, "max_tokens": 200}
    whole = ask.chat.completions.create(**asked).usage.completion_tokens
    before = tokens()
    address, body = server.url.removeprefix("http://"), json.dumps({**asked, "stream": streams})
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until = time.monotonic() + 20
        while tokens() == before:
            assert time.monotonic() < until
    while any(json.loads(get(f"{server.url}/health")[1])[state] for state in ("running", "waiting")):
        assert time.monotonic() < until
    assert 0 < tokens() - before < 0.9 * whole


def test_sigterm_finishes_what_runs(model: Path):
    def pieces(stream: Any) -> Iterator[Any]:
        for chunk in stream:
            yield chunk.choices[0]

    with serving(model) as ending:
        stream = client(ending).chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, max_tokens=200, stop=["never said"], temperature=3.0
        )
        some = pieces(stream)
        next(some)
        ending.process.send_signal(signal.SIGTERM)
        last = list(some)[-1]
        assert last.finish_reason in ("stop", "length")
        assert ending.process.wait(30) in (0, -signal.SIGTERM)
