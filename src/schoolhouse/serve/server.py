"""`school serve`: a model behind OpenAI's API, for clients that know it already.

Many requests are extended together by one sampler (desk.py). Answers come whole or as server-sent events. What cannot
be served gets a status and a reason. Bound to this machine, and deaf to pages of other origins, unless told otherwise.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from schoolhouse import __version__
from schoolhouse.policy.logprobs import TokenLogprob, token_logprobs
from schoolhouse.reward_models.prm import check_same_tokenizer
from schoolhouse.search import render
from schoolhouse.search.solve import Search, parse, solve
from schoolhouse.search.values import RewardModelValue
from schoolhouse.serve.api_schema import MOST_SPENT, Asked, ChatRequest, CompletionRequest, Unfit
from schoolhouse.serve.auth import Guard, told
from schoolhouse.serve.batch_engine import Closed, Desk, Full, Listened, Piece, Ticket, aside
from schoolhouse.serve.chat_page import add_votes
from schoolhouse.serve.model_registry import Shelf
from schoolhouse.serve.responses import (
    Account,
    chat_choice,
    chat_deltas,
    chat_tickets,
    completion_choice,
    completion_deltas,
    completion_tickets,
    event,
    message,
    spoken,
)
from schoolhouse.serve.reward_endpoint import Solution, load_judge, opinion
from schoolhouse.serve.settings import Serve
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Rollout, SchoolError


class Served:
    """Models, their desks, and what has been counted."""

    def __init__(self, c: Serve) -> None:
        self.c, self.shelf = c, Shelf(c)
        self.task: Task = open_task(c.task, c.seed) if c.task else Task()
        self.started, self.requests, self.statuses = time.time(), 0, Counter[int]()
        self.aside = aside()
        self.judge = self.aside.submit(load_judge, c).result()  # in the thread where it is asked
        self._besides = 0

    def number(self) -> int:
        self.requests += 1
        return self.requests

    async def beside(self, work: Callable[..., Any], *given: Any) -> Any:
        """What is computed beside the desks, one after the other. Raises Full where too many wait, TimeoutError."""
        if self._besides > self.c.queue:
            raise Full("too many searches and opinions wait already; ask again later")
        self._besides += 1
        try:
            async with asyncio.timeout(self.c.seconds):
                return await asyncio.get_running_loop().run_in_executor(self.aside, work, *given)
        finally:
            self._besides -= 1

    def total(self, what: Callable[[Desk], int]) -> int:
        """A number of all desks together."""
        return sum(map(what, self.shelf.desks))


def build_app(served: Served) -> FastAPI:
    """The server's paths. Each request passes `Guard` before it gets anywhere."""

    app = FastAPI(title="schoolhouse", version=__version__, docs_url=None, redoc_url=None)
    bound, seconds, shelf = served.c, served.c.seconds, served.shelf

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or None
        if first["type"] == "json_invalid":
            return JSONResponse(told("the body is not JSON", "invalid_request_error"), 400)
        return JSONResponse(told(f"{where or 'the request'}: {first['msg']}", "invalid_request_error", where), 400)

    @app.exception_handler(SchoolError)
    async def unfit(_: Request, error: SchoolError) -> Response:
        if isinstance(error, Full):
            return JSONResponse(told(str(error), "rate_limit_error"), 429, {"Retry-After": "1"})
        if isinstance(error, Closed):
            return JSONResponse(told(str(error), "server_error"), 503, {"Retry-After": "5"})
        param, code, status = (error.param, error.code, error.status) if isinstance(error, Unfit) else (None, None, 400)
        return JSONResponse(told(str(error), "invalid_request_error", param, code), status)

    @app.exception_handler(TimeoutError)
    async def late(_: Request, __: TimeoutError) -> Response:
        return JSONResponse(told(f"not answered within {seconds:g} seconds", "server_error"), 504)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        return JSONResponse(told(str(error.detail), "invalid_request_error"), error.status_code, error.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the model can be asked."""
        fine = shelf.first.broken is None
        state = {"status": "ok" if fine else "broken", "model": shelf.name}
        busy = {"running": served.total(lambda desk: desk.running), "waiting": served.total(lambda desk: desk.waiting)}
        return JSONResponse({**state, **busy}, 200 if fine else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters and gauges in Prometheus' format."""
        numbers = {
            "schoolhouse_tokens_total": served.total(lambda desk: desk.tokens),
            "schoolhouse_answers_total": served.total(lambda desk: desk.served),
            "schoolhouse_running": served.total(lambda desk: desk.running),
            "schoolhouse_waiting": served.total(lambda desk: desk.waiting),
            "schoolhouse_slots": bound.slots,
        }
        lines = [f"{name} {value}" for name, value in numbers.items()]
        lines += [f'schoolhouse_requests_total{{status="{s}"}} {n}' for s, n in sorted(served.statuses.items())]
        return PlainTextResponse("\n".join(lines) + "\n")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, and the checkpoints beside it."""
        return {"object": "list", "data": [described(name) for name in shelf.places()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in shelf.places():
            raise Unfit(f"there is no model `{name}` here", "model", "model_not_found", 404)
        return described(name)

    def described(name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": int(served.started), "owned_by": "schoolhouse"}
        return {
            **about,
            "max_model_len": shelf.first.context,
            "judge": bound.judge.resolve().name if bound.judge else None,
        }

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request, c: ChatRequest) -> Response:
        """An answer to a conversation, its thinking beside it."""
        desk = await shelf.desk(c.model)
        say, number = desk.policy.conversation, served.number()
        head = _head("chatcmpl", "chat.completion", c.model)
        if c.search:
            return JSONResponse({**head, **await _searched(request, served, desk, c, number)})
        tickets = chat_tickets(say, c, number, served.c.seed, desk.context)
        desk.ask(tickets)
        if c.stream:
            streams = [chat_deltas(say, c, ticket) for ticket in tickets]
            return _streamed(_head("chatcmpl", "chat.completion.chunk", c.model), streams, tickets, c, served)
        found = await _all(request, tickets, seconds)
        choices = [chat_choice(say, c, at, *one) for at, one in enumerate(found)]
        return JSONResponse({**head, "choices": choices, "usage": _usage(tickets, found, c)})

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, c: CompletionRequest) -> Response:
        """Text that goes on."""
        desk = await shelf.desk(c.model)
        say = desk.policy.conversation
        tickets = completion_tickets(say, c, served.number(), served.c.seed, desk.context)
        if c.max_tokens:
            desk.ask(tickets)
        if c.stream:
            streams = [completion_deltas(say, c, ticket) for ticket in tickets]
            return _streamed(_head("cmpl", "text_completion", c.model), streams, tickets, c, served)
        nothing: list[tuple[list[Piece], Rollout]] = [([], ticket.rollout) for ticket in tickets]
        found = await _all(request, tickets, seconds) if c.max_tokens else nothing
        echoed: list[Sequence[TokenLogprob]] = [()] * len(tickets)
        if c.echo:
            asked = [ticket.rollout.tokens for ticket in tickets]
            echoed = [await served.beside(token_logprobs, desk.policy, ids, c.logprobs or 0) for ids in asked]
        told_ = [completion_choice(say, c, at, *one, echoed[at]) for at, one in enumerate(found)]
        usage = _usage(tickets, found, c)
        return JSONResponse({**_head("cmpl", "text_completion", c.model), "choices": told_, "usage": usage})

    @app.post("/api/opinion")
    async def judged(c: Solution) -> dict[str, Any]:
        """What the server's reward model holds of the last turn, step by step."""
        if served.judge is None:
            raise Unfit("this server has no judge: start it with --judge FOLDER", status=404)
        return await served.beside(opinion, served.judge, c.messages)

    plain = app.openapi

    def with_names() -> dict[str, Any]:
        """The description of this API, with the names that models have now."""
        described = plain()
        for name in ("Chat", "Completion"):
            described["components"]["schemas"][name]["properties"]["model"]["enum"] = list(shelf.places())
        return described

    app.openapi = with_names
    add_votes(app, bound.votes)
    app.add_middleware(Guard, host=bound.host, origins=bound.origins, key=bound.key, statuses=served.statuses)
    return app


async def _all(request: Request, tickets: Sequence[Ticket], seconds: float) -> list[tuple[list[Piece], Rollout]]:
    """What each ticket said, when all have. A client that hangs up, or takes too long, frees its slots."""

    async def whole(ticket: Ticket) -> tuple[list[Piece], Rollout]:
        pieces: list[Piece] = []
        async for some in ticket.pieces():
            pieces += [piece for piece in some if isinstance(piece, Piece)]
            if isinstance(some[-1], Rollout):
                return pieces, some[-1]
        raise Closed("the sampler has stopped")

    def leave() -> None:
        for ticket in tickets:
            ticket.left = True

    async with _watching(request, leave):
        try:
            async with asyncio.timeout(seconds):
                return list(await asyncio.gather(*map(whole, tickets)))
        finally:
            leave()


@asynccontextmanager
async def _watching(request: Request, leave: Callable[[], None]) -> AsyncGenerator[None]:
    """`leave` is called when the client hangs up."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)
        leave()

    watching = asyncio.create_task(gone())
    try:
        yield
    finally:
        watching.cancel()


def _streamed(
    head: dict[str, Any],
    streams: Sequence[AsyncIterator[dict[str, Any] | Account]],
    tickets: Sequence[Ticket],
    c: Asked,
    served: Served,
) -> StreamingResponse:
    """All samples as one stream of events, each with its index; an account at the end, where it is wanted."""

    async def events() -> AsyncIterator[str]:
        news: asyncio.Queue[tuple[int, dict[str, Any] | Account | Exception]] = asyncio.Queue()

        async def hear(at: int, stream: AsyncIterator[dict[str, Any] | Account]) -> None:
            try:
                async for one in stream:
                    news.put_nowait((at, one))
            except SchoolError as error:
                news.put_nowait((at, error))

        tasks = [asyncio.create_task(hear(at, stream)) for at, stream in enumerate(streams)]
        said, open_ = 0, len(tasks)
        try:
            async with asyncio.timeout(served.c.seconds):
                while open_:
                    at, one = await news.get()
                    if isinstance(one, Exception):
                        yield event(told(str(one), "server_error"))
                        return
                    if isinstance(one, Account):
                        said, open_ = said + one.said, open_ - 1
                    else:
                        yield event({**head, "choices": [{"index": at, **one}]})
            if c.stream_options and c.stream_options.include_usage:
                account = Account(sum(len(t.rollout) for t in tickets[:: c.samples]), said)
                yield event({**head, "choices": [], "usage": account.to_json()})
            yield event("[DONE]")
        except TimeoutError:
            yield event(told(f"not answered within {served.c.seconds:g} seconds", "server_error"))
        finally:
            for task in tasks:
                task.cancel()
            for ticket in tickets:
                ticket.left = True

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _searched(request: Request, served: Served, desk: Desk, c: ChatRequest, number: int) -> dict[str, Any]:
    """One answer, thought about longer. Searches take turns, beside what the desk does; one that nobody waits for any
    more ends with its next token."""
    say, listened = desk.policy.conversation, Listened(desk.policy)
    how = parse(c.search or "", c.budget or MOST_SPENT)
    if c.temperature is not None:
        how = how.model_copy(update={"temperature": c.temperature})
    judge = _asked_judge(served, desk, how)
    if c.length is not None:
        how = how.model_copy(update={"length": c.length})
    (ticket,) = chat_tickets(say, c.model_copy(update={"n": 1}), number, served.c.seed, desk.context)
    async with _watching(request, listened.leave):
        try:
            (found,) = await served.beside(solve, listened, served.task, [ticket.rollout], how, judge)
        finally:
            listened.leave()
    thought, answer, reason = spoken(say, found.rollout, ()) if found.rollout else (None, "", "length")
    choice = {"index": 0, "message": message(thought, answer), "logprobs": None, "finish_reason": reason}
    usage = Account(len(ticket.rollout), found.tokens).to_json()
    return {"choices": [choice], "usage": usage, "search": render.result_to_json(found)}


def _asked_judge(served: Served, desk: Desk, how: Search) -> RewardModelValue | None:
    """The server's judge for a search that asks for it; a judge in any other folder is not to be had over HTTP."""
    if how.values in ("ask", "vote", "exact", "random") and not how.reference_model:
        return None
    judge = served.judge
    if judge is None or how.values != "judge" or how.reference_model or how.label_places not in (Search().label_places, judge.label_places):
        told_ = "over HTTP the only judge is the server's own: `school serve --judge FOLDER`, then `values=judge`"
        raise Unfit(f"`search`: {told_}", "search", "search")
    check_same_tokenizer(desk.policy.conversation, judge.policy.conversation, "this model", "the server's judge")
    return RewardModelValue(replace(judge, step_aggregation=how.step_aggregation) if "aggregate" in how.model_fields_set else judge)


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(tickets: Sequence[Ticket], found: Sequence[tuple[list[Piece], Rollout]], c: Asked) -> dict[str, int]:
    prompts = sum(len(ticket.rollout) for ticket in tickets[:: c.samples])
    return Account(prompts, sum(len(pieces) for pieces, _ in found)).to_json()
