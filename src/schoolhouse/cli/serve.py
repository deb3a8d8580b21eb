"""The commands that listen: `school chat`, `school serve` for clients of OpenAI's API, `school board` for eyes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.serve.settings import Serve
from schoolhouse.types import SchoolError


class Chat(BaseConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    max_new_tokens: int = Field(512, gt=0)
    """Tokens an answer may take, thinking included."""
    temperature: float = Field(0.7, ge=0)
    """0 always says what is likeliest."""
    web: bool = False
    """Talk on a local web page instead, with votes, searches, probabilities and blind duels."""
    port: int = Field(8000, ge=1, le=65535)
    """Of that page."""
    seed: int = 0


def chat(words: Sequence[str]) -> None:
    """school chat MODEL [--web]"""
    c = parse_options(Chat, words, "school chat MODEL [--web]", ("model",))
    if c is None:
        return
    if c.web:
        if c.model_fields_set & {"max_new_tokens", "temperature"}:
            raise SchoolError("--max_new_tokens and --temperature are for the terminal: the page has sliders for them")
        listen(Serve(model=c.model, port=c.port, seed=c.seed))
        return
    from schoolhouse.policy.policy import Policy
    from schoolhouse.serve.chat import chat as talk

    talk(Policy.load(c.model), c.max_new_tokens, c.temperature, seed=c.seed)


def serve(words: Sequence[str]) -> None:
    """school serve MODEL [--port 8000] [--key KEY]"""
    c = parse_options(Serve, words, "school serve MODEL [--port 8000] [--key KEY]", ("model",))
    if c is not None:
        listen(c)


def listen(c: Serve) -> None:
    """Answer until Ctrl-C, or until the process is told to end."""
    from schoolhouse.serve.lazy_start import run

    served: list[Any] = []

    def build() -> Any:
        from schoolhouse.serve.server import Served, build_app  # imports torch: the page does not wait for it

        served.append(Served(c))
        print("the model is loaded", flush=True)
        return build_app(served[0])

    place, door = f"http://{c.host}:{c.port}", bind_socket(c.host, c.port)
    print(f"{place}/v1 for clients, {place} for people (Ctrl-C ends it)", flush=True)
    run(c, build, lambda: served[0].shelf.close(), door)


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises SchoolError where the port cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SchoolError(f"{host}:{port} cannot be had ({error.strerror}): choose another --port or --host") from None


class Board(BaseConfig):
    folder: Path = Path("runs")
    """Folder that holds runs, in folders inside it too."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine reaches the board unless it is another."""
    port: int = Field(8100, ge=1, le=65535)
    claims: Path | None = None
    """Folder with results of claims."""


def board(words: Sequence[str]) -> None:
    """school board [FOLDER] [--port 8100]"""
    c = parse_options(Board, words, "school board [FOLDER] [--port 8100] [--claims docs/claims]", ("folder",))
    if c is None:
        return
    if not c.folder.is_dir():
        raise SchoolError(f"{c.folder} is not a folder; give the one that holds your runs")
    import uvicorn

    from schoolhouse.board.app import build_app

    door = bind_socket(c.host, c.port)
    print(f"{c.folder} is shown at http://{c.host}:{c.port} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(build_app(c.folder, c.host, c.claims), log_level="warning")).run(sockets=[door])
