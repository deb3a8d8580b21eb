"""The server, in a process of its own, with OpenAI's client."""

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

from live_server import RunningServer, get, running_server
from schoolhouse.policy.logprobs import token_logprobs
from schoolhouse.policy.policy import Policy
from schoolhouse.serve.api_schema import ChatCompletionRequest, CompletionRequest
from schoolhouse.types import Key, Message, Problem

QUESTION = "Start at 7. Add 5. Take 3."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
API_KEY = "open sesame"
CLIENTS: list[OpenAI] = []


def serve(model: Path, *options: str) -> AbstractContextManager[RunningServer]:
    return running_server("serve", str(model), "--served_model_name", "tiny", *options, ready_path="/health")


def open_client(server: RunningServer, api_key: str = "none") -> Any:  # Any: type checkers are slow on its overloads
    CLIENTS.append(OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0))
    return CLIENTS[-1]


@pytest.fixture(scope="module", autouse=True)
def _close_clients() -> Iterator[None]:
    """A connection that is garbage-collected while open gives a warning, which fails the test of that moment."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return open_client(server)


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    return Policy.load(model)


def greedy(policy: Policy, max_new_tokens: int = 24) -> tuple[str, str, tuple[int, ...]]:
    """Thought, answer and ids of the policy's own greedy completion."""
    prompt = policy.conversation.prompt_rollout(Problem("p", (Message("user", QUESTION),), ""), Key(0, "t"))
    (rollout,) = policy.extend([prompt], max_new_tokens, temperature=0.0)
    completion = policy.conversation.parse_completion(rollout)
    return completion.thought or "", completion.answer, rollout.last_turn()


def thinking(message: Any) -> str:
    """The thinking of a message or of a delta."""
    return (message.model_extra or {}).get("reasoning_content") or ""


def read_metrics(server: RunningServer) -> dict[str, int]:
    _, text, _ = get(f"{server.url}/metrics")
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def read_health(server: RunningServer) -> dict[str, Any]:
    return json.loads(get(f"{server.url}/health")[1])


# --- chat


def test_a_greedy_answer_is_that_of_the_policy(client: Any, policy: Policy):
    thought, answer, ids = greedy(policy)
    response = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=24)
    (choice,) = response.choices
    assert choice.message.content == answer
    assert thinking(choice.message) == thought
    assert response.usage
    assert response.usage.completion_tokens == len(ids)
    assert choice.finish_reason == ("stop" if ids[-1] in policy.conversation.stop_ids else "length")


def test_a_streamed_response_is_the_whole_one(client: Any):
    options: Any = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 24, "n": 2}
    whole = client.chat.completions.create(**options)
    streamed, finish_reasons, usage = {0: ["", ""], 1: ["", ""]}, {}, None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index][0] += thinking(choice.delta)
            streamed[choice.index][1] += choice.delta.content or ""
            finish_reasons[choice.index] = choice.finish_reason or finish_reasons.get(choice.index)
    for choice in whole.choices:
        assert streamed[choice.index] == [thinking(choice.message), choice.message.content]
        assert finish_reasons[choice.index] == choice.finish_reason
    assert usage == whole.usage


def test_a_seed_repeats_a_response_and_other_seeds_differ(client: Any):
    def sample(**options: Any) -> str:
        response = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=24, temperature=1.5, **options
        )
        return json.dumps([choice.message.model_dump() for choice in response.choices])

    assert sample(seed=1, n=3) == sample(seed=1, n=3)
    assert sample(seed=1) != sample(seed=2)
    assert sample() != sample()


def test_logprobs_are_those_of_the_sampled_tokens(client: Any, policy: Policy):
    response = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2
    )
    assert response.choices[0].logprobs
    content = response.choices[0].logprobs.content or []
    _, _, ids = greedy(policy, 6)
    conversation = policy.conversation
    prompt = conversation.prompt((Message("user", QUESTION),))
    expected = token_logprobs(policy, [*prompt, *ids], 2)[len(prompt) :]
    assert [token.token for token in content] == [conversation.tokenizer.decode([token]) for token in ids]
    assert [token.logprob for token in content] == pytest.approx([token.logprob for token in expected], abs=0.02)
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert content[0].token.encode() == bytes(content[0].bytes or [])


def test_an_answer_ends_before_a_stop_text(client: Any, policy: Policy):
    thought, answer, _ = greedy(policy)
    stop = (thought + answer)[2:4]
    options: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 24, "stop": [stop]}
    (choice,) = client.chat.completions.create(**options).choices
    text = thinking(choice.message) + (choice.message.content or "")
    assert text == (thought + answer).partition(stop)[0]
    assert choice.finish_reason == "stop"
    streamed = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        delta = chunk.choices[0].delta
        streamed += thinking(delta) + (delta.content or "")
    assert streamed == text


def test_a_search_returns_its_votes_and_its_tokens(client: Any):
    options = {"search": "vote?samples=4&max_new_tokens=16", "search_budget": 64}
    response = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=options)
    search: Any = response.model_extra["search"]
    assert search["tokens"] <= 64
    assert sum(count for _, count in search["votes"]) <= 4
    assert "answers" in search["stop_reason"]


def test_a_search_takes_its_length_from_the_request(client: Any):
    response = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=2, extra_body={"search": "vote?samples=4"}
    )
    assert response.model_extra["search"]["tokens"] <= 8


def test_a_search_from_a_python_file_is_refused_over_http(client: Any, tmp_path: Path):
    (tmp_path / "strategy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BadRequestError, match="Python files are not allowed here"):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"search": f"{tmp_path}/strategy.py"}
        )
    assert not (tmp_path / "ran").exists()


# --- completions


def test_a_completion_is_that_of_the_policy(client: Any, policy: Policy):
    conversation = policy.conversation
    prompt = list(conversation.prompt((Message("user", QUESTION),)))
    _, _, ids = greedy(policy, 12)
    text = conversation.tokenizer.decode([token for token in ids if token not in conversation.stop_ids])
    response = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=12)
    assert response.choices[0].text == text
    streamed = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text


def test_an_echo_has_the_logprobs_of_the_prompt(client: Any, policy: Policy):
    """lm-eval compares answers by these."""
    text = "7+5=2 2-3=9"
    response = client.completions.create(model="tiny", prompt=[text, "7"], echo=True, max_tokens=0, logprobs=1)
    expected = token_logprobs(policy, policy.conversation.tokenizer.encode(text), 1)
    first, second = response.choices
    assert (first.text, second.text) == (text, "7")
    assert first.logprobs
    assert first.logprobs.token_logprobs
    assert first.logprobs.token_logprobs[0] is None
    logprobs = [token.logprob for token in expected[1:]]
    assert first.logprobs.token_logprobs[1:] == pytest.approx(logprobs, abs=1e-5)
    assert first.logprobs.top_logprobs
    likeliest = [max(top, key=lambda word: top[word]) for top in first.logprobs.top_logprobs[1:]]
    decode = policy.conversation.tokenizer.decode
    assert likeliest == [decode([token.top_logprobs[0][0]]) for token in expected[1:]]


def test_concurrent_requests_get_their_own_responses(client: Any):
    def sample(seed: int) -> str:
        response = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=20, seed=seed, temperature=1.3
        )
        return response.choices[0].message.model_dump_json()

    alone = [sample(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(sample, range(12))) == alone


# --- refused requests


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"max_tokens": 100_000}, "the context length is 256 tokens"),
        ({"messages": [{"role": "user", "content": "7 " * 400}]}, "the context length is 256 tokens"),
        ({"n": 1000}, "n"),
        ({"stop": [""]}, "empty text"),
        ({"stop": ["x" * 1001]}, "more than 1,000 characters"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"extra_body": {"search": "oracle"}}, "unknown search"),
        ({"extra_body": {"search": "best_of_n?values=/etc"}}, "the server's own"),
        ({"top_logprobs": 3}, "set `logprobs` to true"),
        (
            {"top_p": 0.5, "extra_body": {"search": "vote"}},
            "can set only `temperature`, `max_tokens` and `search_budget`",
        ),
        ({"extra_body": {"search_budget": 64}}, "search_budget: is set, but `search` is not"),
        ({"extra_body": {"search": "vote", "search_budget": 1e9}}, "must be at most 65,536, but is"),
    ],
)
def test_an_invalid_request_gets_400_and_the_reason(client: Any, change: dict[str, Any], message: str):
    with pytest.raises(BadRequestError, match=message):
        client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **change})


def post(server: RunningServer, path: str, body: dict[str, Any]) -> tuple[int, str]:
    status, text, _ = get(f"{server.url}{path}", {"Content-Type": "application/json"}, json.dumps(body).encode())
    return status, text


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/completions", CompletionRequest, {"prompt": "7"}),
        ("/v1/chat/completions", ChatCompletionRequest, {"messages": MESSAGES, "max_tokens": 8}),
    ],
    ids=["completion", "chat"],
)
def test_null_gives_the_default(server: RunningServer, path: str, kind: Any, body: dict[str, Any], stream: bool):
    def choices(text: str) -> Any:
        """The choices of a response, or the whole text of a stream."""
        if not stream:
            return json.loads(text)["choices"]
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        parts = [choice.get("delta", choice) for event in events for choice in event["choices"]]
        return ["".join(part.get(name) or "" for part in parts) for name in ("text", "content", "reasoning_content")]

    body = {"model": "tiny", "seed": 3, "stream": stream, **body}
    nulls = dict.fromkeys(kind.model_fields) | body
    (status, expected), (status_of_nulls, found) = post(server, path, body), post(server, path, nulls)
    assert (status, status_of_nulls) == (200, 200)
    assert choices(found) == choices(expected)
    assert any(choices(expected))


def test_false_logprobs_are_left_out(server: RunningServer):
    body = {"model": "tiny", "prompt": "7", "logprobs": False}
    status, text = post(server, "/v1/completions", body)
    assert (status, json.loads(text)["choices"][0]["logprobs"]) == (200, None)


def test_an_error_names_the_field(server: RunningServer):
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    status, text = post(server, "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (status, error["param"]) == (400, "messages[0].content[1].type")
    assert error["message"] == "messages[0].content[1].type: `image_url` is not supported; send text"


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("/v1/completions", {"prompt": "a" * 1_000_000}, "the prompt has 1,000,000 characters"),
        ("/v1/completions", {"prompt": [1] * 150_000}, "the prompt has 150,000 tokens"),
        ("/v1/completions", {"prompt": ["a"] * 150_000}, "asks for 150,000 completions"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 1_000_000}]}, "1,000,000 characters"),
        ("/v1/chat/completions", {"messages": [{}] * 150_000}, "the limit is 200,000 values"),
    ],
    ids=["text", "ids", "prompts", "chat", "objects"],
)
def test_an_oversized_request_is_refused_before_any_work(
    server: RunningServer, path: str, change: dict[str, Any], message: str
):
    """The time limit is far below the seconds that the work would take, and far above the milliseconds of a refusal."""
    start = time.perf_counter()
    status, text = post(server, path, {"model": "tiny", **change})
    assert (status, time.perf_counter() - start < 0.5) == (400, True)
    assert message in text


def test_other_requests_are_answered_while_a_long_prompt_is_encoded(server: RunningServer):
    """The thought counts only after it was encoded, because a template may drop it."""
    thought = {"role": "assistant", "content": "", "reasoning_content": "a b" * 300_000}
    body = {"model": "tiny", "messages": [thought, *MESSAGES]}
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(post, server, "/v1/chat/completions", body)
        answered = 0
        while not refused.done():
            assert read_health(server)["status"] == "ok"
            answered += not refused.done()
    assert refused.result()[0] == 400
    assert answered > 5


def test_a_body_that_is_not_json_gets_400(server: RunningServer):
    status, text, _ = get(f"{server.url}/v1/completions", {"Content-Type": "application/json"}, b"{")
    assert status == 400
    assert json.loads(text)["error"]["message"].startswith("the body is not valid JSON")


def test_an_unknown_model_gets_404(client: Any):
    with pytest.raises(NotFoundError, match="choose one of `tiny`"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)


def test_a_full_queue_gets_429(server: RunningServer, client: Any):
    body = {"model": "tiny", "messages": MESSAGES, "n": 16, "temperature": 3.0, "max_tokens": 200}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.chat.completions.create, **body)
        while not read_health(server)["running"]:
            assert not first.done()
        with pytest.raises(RateLimitError, match="queue is full .* again later"):
            client.chat.completions.create(**body)
        assert len(first.result().choices) == 16


def test_more_samples_than_the_queue_can_hold_get_400(client: Any):
    with pytest.raises(BadRequestError, match="asks for 17 completions, but the limit is 16"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=17)


@pytest.mark.parametrize("field", ["stop", "search", "model", "user"])
def test_a_lone_surrogate_is_refused_in_any_field(server: RunningServer, field: str):
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "max_tokens": 4, field: "\ud800"}).encode()
    status, text, _ = get(f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}, body)
    assert status == 400
    assert "lone surrogate" in text
    assert read_health(server)["status"] == "ok"


def test_a_tiny_temperature_is_greedy(client: Any):
    greedy_one, tiny_one = (
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=temperature)
        for temperature in (0, 1e-30)
    )
    assert greedy_one.choices[0].message == tiny_one.choices[0].message


@pytest.mark.parametrize("header, value, status", [("Origin", "http://evil.test", 403), ("Host", "evil.test", 421)])
def test_other_origins_and_host_names_are_refused(server: RunningServer, header: str, value: str, status: int):
    found, _, headers = get(f"{server.url}/v1/models", {header: value})
    assert found == status
    assert "access-control-allow-origin" not in {name.lower() for name in headers}


def test_an_allowed_origin_may_send_requests(model: Path):
    origin = {"Origin": "http://friend.test"}
    with serve(model, "--api_key", API_KEY, "--allowed_origins", origin["Origin"]) as server:
        preflight = {
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        with urlopen(Request(f"{server.url}/v1/chat/completions", headers=preflight, method="OPTIONS")) as response:
            assert response.status == 204
            assert response.headers["access-control-allow-origin"] == origin["Origin"]
            assert "authorization" in response.headers["access-control-allow-headers"]
        status, _, headers = get(f"{server.url}/v1/models", {**origin, "Authorization": f"Bearer {API_KEY}"})
        lower_case = {name.lower(): value for name, value in headers.items()}
        assert (status, lower_case["access-control-allow-origin"]) == (200, origin["Origin"])
        assert get(f"{server.url}/v1/models", origin)[0] == 401  # the key is required all the same


def test_the_servers_own_origin_may_send_requests(server: RunningServer):
    status, text, _ = get(f"{server.url}/v1/models", {"Origin": server.url})
    assert (status, json.loads(text)["data"][0]["id"]) == (200, "tiny")


def test_an_api_key_is_required_where_one_is_set(model: Path):
    key = {"SCHOOLHOUSE_API_KEY": API_KEY}
    with running_server("serve", str(model), ready_path="/health", environment=key) as server:
        assert open_client(server, API_KEY).models.list().data
        with pytest.raises(AuthenticationError, match="missing or wrong"):
            open_client(server, "guess").models.list()
        assert get(f"{server.url}/api/leaderboard")[0] == 401
        assert get(f"{server.url}/")[0] == 200  # the page prompts for the key


def test_a_server_for_other_machines_checks_names_and_warns(model: Path):
    with serve(model, "--host", "0.0.0.0", "--allowed_hosts", "models.example.org") as server:
        assert get(f"{server.url}/v1/models", {"Host": "models.example.org"})[0] == 200
        assert get(f"{server.url}/v1/models", {"Host": "evil.test"})[0] == 421
        assert get(f"{server.url}/", {"Host": "evil.test"})[0] == 421
        server.process.send_signal(signal.SIGTERM)
        output = server.process.communicate(timeout=30)[0]
    assert "the server has no API key" in output
    assert "KV cache: 64 sequences of 256 tokens" in output


def test_a_timeout_gets_504(model: Path):
    with serve(model, "--timeout", "0.001") as server, pytest.raises(APIStatusError) as error:
        open_client(server).chat.completions.create(model="tiny", messages=MESSAGES)
    assert error.value.status_code == 504


# --- state, disconnect, shutdown


def test_health_and_metrics(server: RunningServer):
    assert read_health(server)["status"] == "ok"
    metrics = read_metrics(server)
    assert "schoolhouse_generation_tokens_total" in metrics
    assert metrics['schoolhouse_http_requests_total{status="200"}'] > 0


def test_the_api_description_names_the_models(server: RunningServer):
    schemas = json.loads(get(f"{server.url}/openapi.json")[1])["components"]["schemas"]
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        assert schemas[name]["properties"]["model"]["enum"] == ["tiny"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_disconnect_frees_the_slots(server: RunningServer, client: Any, stream: bool):
    def sampled_tokens() -> int:
        return read_metrics(server)["schoolhouse_generation_tokens_total"]

    body = {"model": "tiny", "messages": MESSAGES, "n": 16, "temperature": 3.0, "seed": 5, "max_tokens": 200}
    whole = client.chat.completions.create(**body).usage.completion_tokens
    before = sampled_tokens()
    address, sent = server.url.removeprefix("http://"), json.dumps({**body, "stream": stream})
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n{sent}".encode())
        deadline = time.monotonic() + 20
        while sampled_tokens() == before:
            assert time.monotonic() < deadline
    while any(read_health(server)[state] for state in ("running", "waiting")):
        assert time.monotonic() < deadline
    assert 0 < sampled_tokens() - before < 0.9 * whole


def test_searches_stop_when_their_clients_disconnect(server: RunningServer, client: Any):
    """The last search waits for ten earlier ones, which have no clients any more."""
    options = {"model": "tiny", "messages": MESSAGES, "temperature": 3.0}
    long = "vote?samples=300&max_new_tokens=200"
    start = time.perf_counter()
    client.chat.completions.create(**options, extra_body={"search": long})
    whole = time.perf_counter() - start
    address, sent = server.url.removeprefix("http://"), json.dumps({**options, "search": long})
    host, port = address.split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    for _ in range(10):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n{sent}".encode())
            time.sleep(0.02)
    start = time.perf_counter()
    client.chat.completions.create(**options, extra_body={"search": "vote?samples=1&max_new_tokens=1"})
    assert time.perf_counter() - start < 4 * whole


def test_sigterm_finishes_running_requests(model: Path):
    with serve(model) as server:
        stream = open_client(server).chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, max_tokens=200, stop=["never said"], temperature=3.0
        )
        choices = (chunk.choices[0] for chunk in stream)
        next(choices)
        server.process.send_signal(signal.SIGTERM)
        last = list(choices)[-1]
        assert last.finish_reason in ("stop", "length")
        assert server.process.wait(30) in (0, -signal.SIGTERM)
