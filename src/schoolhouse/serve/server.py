"""The command `school serve` starts a server with an OpenAI-compatible API for a model.

One engine samples for many requests together (batch_engine.py). A response is sent as a whole or as server-sent events.
A request that cannot be served gets an error status and a reason. By default the server listens on the loopback
address, and rejects requests from web pages of other origins.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from schoolhouse import __version__
from schoolhouse.policy.logprobs import TokenLogprob, token_logprobs
from schoolhouse.reward_models.prm import check_same_tokenizer
from schoolhouse.search import render
from schoolhouse.search.solve import Search, parse, solve
from schoolhouse.search.values import RewardModelValue
from schoolhouse.serve.api_schema import (
    MAX_SEARCH_TOKENS,
    BaseCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    InvalidRequest,
)
from schoolhouse.serve.auth import AccessControl, error_body
from schoolhouse.serve.batch_engine import (
    BatchEngine,
    CancellablePolicy,
    EngineClosed,
    PendingRequest,
    QueueFull,
    one_core_executor,
)
from schoolhouse.serve.chat_page import add_arena
from schoolhouse.serve.model_registry import ModelRegistry
from schoolhouse.serve.prompts import PromptEncoder, chat_prompt, check_length, completion_prompts
from schoolhouse.serve.request_fields import BodyError, error_text, read_json
from schoolhouse.serve.responses import (
    Usage,
    assistant_message,
    chat_choice,
    chat_deltas,
    completion_choice,
    completion_deltas,
    conversation_of,
    pending_chat,
    pending_completions,
    split_completion,
    whole_response,
)
from schoolhouse.serve.reward_endpoint import RewardRequest, grade_answer, load_reward_model
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.serve.streaming import Output, collect, on_disconnect, prompt_tokens, stream_response, timeout_text
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Rollout, SchoolError


class Server:
    """The models of a server, its reward model and its counters."""

    def __init__(self, config: ServerConfig) -> None:
        self.config, self.registry = config, ModelRegistry(config)
        self.task: Task = open_task(config.task, config.seed) if config.task else Task()
        self.started, self.num_requests, self.status_counts = time.time(), 0, Counter[int]()
        self._executor, self.encoder = one_core_executor(), PromptEncoder(config.max_queued_seqs, config.timeout)
        self.reward_model = self._executor.submit(load_reward_model, config).result()  # in the thread that uses it
        self._background_jobs = 0

    def next_number(self) -> int:
        """Return the number of a new request. If a request has no seed, the random numbers of the request depend on the
        number of the request."""
        self.num_requests += 1
        return self.num_requests

    async def run_in_background(
        self, request: Request, work: Callable[..., Any], *args: Any, cancel: Callable[[], None] = lambda: None
    ) -> Any:
        """Run a job in the background thread, outside the engines. The background jobs run one after another.

        If the client disconnects, the method calls `cancel`, and does not start a job that still waits. Raises
        QueueFull if too many jobs wait, TimeoutError after the server's timeout, and EngineClosed if the client has
        disconnected.
        """
        limit, left = self.config.max_queued_seqs, False
        if self._background_jobs > limit:
            raise QueueFull(
                f"the queue of searches and rewards is full ({self._background_jobs - 1} of {limit} places are taken); "
                "send the request again later"
            )

        def stop() -> None:
            nonlocal left
            left = True
            cancel()
            job.cancel()

        self._background_jobs += 1
        job = self._executor.submit(work, *args)
        try:
            async with on_disconnect(request, stop), asyncio.timeout(self.config.timeout):
                return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if left:
                raise EngineClosed("the request was cancelled: its client has disconnected") from None
            raise
        finally:
            cancel()
            job.cancel()
            self._background_jobs -= 1

    def total(self, count: Callable[[BatchEngine], int]) -> int:
        """Compute the sum of a count over all engines."""
        return sum(map(count, self.registry.engines))

    def close(self) -> None:
        self.registry.close()
        self.encoder.close()


class JsonRequest(Request):
    """A request whose body is read with the function `read_json`, which refuses a body with too many values."""

    async def json(self) -> Any:
        try:
            return read_json(await self.body())
        except BodyError as error:
            raise HTTPException(400, str(error)) from None


class JsonRoute(APIRoute):
    """A route that gives a `JsonRequest` to its handler."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def build_app(server: Server) -> FastAPI:
    """Build the app with the server's routes. The class `AccessControl` checks each request first."""

    app = FastAPI(title="schoolhouse", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    config, registry = server.config, server.registry

    @app.exception_handler(RequestValidationError)
    async def invalid_body(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        path, text = error_text(first)
        return JSONResponse(error_body(text, "invalid_request_error", path or None), 400)

    @app.exception_handler(SchoolError)
    async def school_error(_: Request, error: SchoolError) -> Response:
        if isinstance(error, QueueFull):
            return JSONResponse(error_body(str(error), "rate_limit_error"), 429, {"Retry-After": "1"})
        if isinstance(error, EngineClosed):
            return JSONResponse(error_body(str(error), "server_error"), 503, {"Retry-After": "5"})
        if isinstance(error, InvalidRequest):
            body = error_body(str(error), "invalid_request_error", error.param, error.code)
            return JSONResponse(body, error.status)
        return JSONResponse(error_body(str(error), "invalid_request_error"), 400)

    @app.exception_handler(TimeoutError)
    async def timed_out(_: Request, __: TimeoutError) -> Response:
        return JSONResponse(error_body(timeout_text(config.timeout), "server_error"), 504)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail), "invalid_request_error"), error.status_code, error.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return whether the default model can be used."""
        healthy = registry.default_engine.error is None
        body = {
            "status": "ok" if healthy else "error",
            "model": registry.default_name,
            "running": server.total(lambda engine: engine.running),
            "waiting": server.total(lambda engine: engine.waiting),
        }
        return JSONResponse(body, 200 if healthy else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Return counters and gauges in the format of Prometheus."""
        values = {
            "schoolhouse_generation_tokens_total": server.total(lambda engine: engine.sampled_tokens),
            "schoolhouse_completions_total": server.total(lambda engine: engine.finished),
            "schoolhouse_seqs_running": server.total(lambda engine: engine.running),
            "schoolhouse_seqs_waiting": server.total(lambda engine: engine.waiting),
            "schoolhouse_max_num_seqs": config.max_num_seqs,
        }
        lines = [f"{name} {value}" for name, value in values.items()]
        for status, count in sorted(server.status_counts.items()):
            lines.append(f'schoolhouse_http_requests_total{{status="{status}"}} {count}')
        return PlainTextResponse("\n".join(lines) + "\n")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the server's model and the checkpoints below its folder."""
        return {"object": "list", "data": [model_card(name) for name in registry.folders()]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        if name not in registry.folders():
            raise InvalidRequest(
                f"unknown model `{name}`; /v1/models lists all models", "model", "model_not_found", 404
            )
        return model_card(name)

    def model_card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(server.started),
            "owned_by": "schoolhouse",
            "max_model_len": registry.default_engine.max_model_len,
            "reward_model": config.reward_model.resolve().name if config.reward_model else None,
        }

    @app.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        """Answer a conversation. The thinking of the model is in a separate field of the response."""
        engine = await registry.engine(body.model)
        conversation, number = conversation_of(engine.policy.conversation, body), server.next_number()
        if body.search:
            response = await _search(request, server, engine, body, number)
            return JSONResponse({**_header("chatcmpl", "chat.completion", body.model), **response})
        prompt = await chat_prompt(engine, conversation, body, server.encoder)
        pending = pending_chat(engine, conversation, body, prompt, number, config.seed)
        engine.submit(pending)
        if body.stream:
            streams = [chat_deltas(conversation, body, one) for one in pending]
            header = _header("chatcmpl", "chat.completion.chunk", body.model)
            return stream_response(header, streams, pending, body, config.timeout)
        outputs = await collect(request, pending, config.timeout)
        choices = (chat_choice(conversation, body, index, *output) for index, output in enumerate(outputs))
        header = _header("chatcmpl", "chat.completion", body.model)
        return await whole_response(header, choices, _usage(pending, outputs, body), in_thread=body.logprobs)

    @app.post("/v1/completions", response_model=None)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Continue the text of a prompt."""
        engine = await registry.engine(body.model)
        conversation = engine.policy.conversation
        number = server.next_number()
        prompts = await completion_prompts(engine, body, server.encoder)
        pending = pending_completions(engine, body, prompts, number, config.seed)
        header = _header("cmpl", "text_completion", body.model)
        if body.max_tokens:
            engine.submit(pending)
        if body.stream:
            streams = [completion_deltas(conversation, body, one) for one in pending]
            return stream_response(header, streams, pending, body, config.timeout)
        outputs: list[Output] = [([], one.rollout) for one in pending]
        if body.max_tokens:
            outputs = await collect(request, pending, config.timeout)
        echoed: list[Sequence[TokenLogprob]] = [()] * len(pending)
        if body.echo:
            num_top = body.logprobs or 0
            work = partial(token_logprobs, engine.policy, num_top=num_top)
            echoed = [await server.run_in_background(request, work, one.rollout.tokens) for one in pending]
        choices = (
            completion_choice(conversation, body, index, *output, echoed[index]) for index, output in enumerate(outputs)
        )
        in_thread = body.logprobs is not None
        return await whole_response(header, choices, _usage(pending, outputs, body), in_thread)

    @app.post("/api/reward")
    async def reward(request: Request, body: RewardRequest) -> dict[str, Any]:
        """Compute the reward of the last message, and the reward of each of its steps."""
        if server.reward_model is None:
            text = "this server has no reward model; start it with `school serve --reward_model FOLDER`"
            raise InvalidRequest(text, status=404)
        characters = sum(len(message.content) for message in (sent.message for sent in body.messages))
        policy = server.reward_model.policy
        check_length(policy.conversation.tokenizer, policy.max_seq_len, characters, "messages")
        return await server.run_in_background(request, grade_answer, server.reward_model, body.messages)

    make_schema = app.openapi

    def schema_with_model_names() -> dict[str, Any]:
        """Return the OpenAPI schema of the server, with the current names of its models."""
        schema = make_schema()
        for body_type in (ChatCompletionRequest, CompletionRequest):
            properties = schema["components"]["schemas"][body_type.__name__]["properties"]
            properties["model"]["enum"] = list(registry.folders())
        return schema

    app.openapi = schema_with_model_names
    add_arena(app, config.votes)
    app.add_middleware(
        AccessControl,
        host=config.host,
        allowed_origins=config.allowed_origins,
        api_key=config.api_key,
        status_counts=server.status_counts,
        allowed_hosts=config.allowed_hosts,
    )
    return app


async def _search(
    request: Request, server: Server, engine: BatchEngine, body: ChatCompletionRequest, number: int
) -> dict[str, Any]:
    """Return one answer that a search finds. Searches run one after another, outside the engine.

    If the client disconnects, its search is cancelled.
    """
    conversation, policy = engine.policy.conversation, CancellablePolicy(engine.policy, engine.room)
    search = parse(body.search, body.search_budget or MAX_SEARCH_TOKENS, allow_files=False)
    if "temperature" in body.model_fields_set:
        search = search.model_copy(update={"temperature": body.temperature})
    value_fn = _reward_model_value(server, engine, search, policy.check)
    if body.max_new_tokens is not None:
        search = search.model_copy(update={"max_new_tokens": body.max_new_tokens})
    one_sample = body.model_copy(update={"n": 1})
    prompt_ids = await chat_prompt(engine, conversation, body, server.encoder)
    (pending,) = pending_chat(engine, conversation, one_sample, prompt_ids, number, server.config.seed)
    prompt = pending.rollout
    args = (policy, server.task, [prompt], search, value_fn)
    (result,) = await server.run_in_background(request, solve, *args, cancel=policy.cancel)
    thought, answer, finish_reason = None, "", "length"
    if result.rollout:
        thought, answer, finish_reason = split_completion(conversation, result.rollout, ())
    message = assistant_message(thought, answer)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    usage = Usage(len(prompt), result.tokens).to_json()
    return {"choices": [choice], "usage": usage, "search": render.result_to_json(result)}


def _reward_model_value(
    server: Server, engine: BatchEngine, search: Search, check: Callable[[], None]
) -> RewardModelValue | None:
    """Return the server's reward model if the search uses a reward model, else None.

    A search over HTTP can use only the reward model with which the server was started. Before each use of the reward
    model, the search calls `check`. The function `check` raises an error if the client has disconnected.
    """
    if search.values in ("prompt", "vote", "exact", "random") and not search.reference_model:
        return None
    model = server.reward_model
    label_places = (Search().label_places, model.label_places if model else "")
    if (
        model is None
        or search.values != "reward_model"
        or search.reference_model
        or search.label_places not in label_places
    ):
        raise InvalidRequest(
            "a search over HTTP can use only the server's own reward model; start the server with `school serve "
            "--reward_model FOLDER`, and write `values=reward_model` in `search`",
            "search",
            "invalid_search",
        )
    check_same_tokenizer(engine.policy.conversation, model.policy.conversation, "this model", "the reward model")
    if "step_aggregation" in search.model_fields_set:
        model = replace(model, step_aggregation=search.step_aggregation)

    def checked(rollouts: Sequence[Rollout]) -> list[float]:
        check()
        return model(rollouts)

    return RewardModelValue(checked)


def _header(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(pending: Sequence[PendingRequest], outputs: Sequence[Output], body: BaseCompletionRequest) -> dict[str, int]:
    return Usage(prompt_tokens(pending, body), sum(len(tokens) for tokens, _ in outputs)).to_json()
