"""The commands `school chat`, `school serve` (an OpenAI-compatible API) and `school board` (a web page about runs)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.runs.progress import progress
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.types import SchoolError


class Chat(ChatConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    max_new_tokens: int = Field(512, gt=0)
    """Limit of the tokens of an answer, thinking included."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature. At 0 the model always takes the most likely token."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number type of the model's weights. auto: the same type as in training. On a CPU, bfloat16 and int8 make a few
    answers at a time faster, but the answers are less exact."""
    web: bool = False
    """Chat on a local web page, with searches, token probabilities and a comparison of two models."""
    port: int = Field(8000, ge=1, le=65535)
    """Port of the web page."""
    seed: int = 0


def chat(args: Sequence[str]) -> None:
    """Run the command `school chat MODEL [--web]`."""
    c = parse_options(Chat, args, "school chat MODEL [--web]", ("model",))
    if c is None:
        return
    if c.web:
        if c.model_fields_set & {"max_new_tokens", "temperature"}:
            raise SchoolError(
                "--max_new_tokens and --temperature do not work with --web: set both values on the web page"
            )
        chat_settings = c.model_dump(include=set(ChatConfig.model_fields))
        listen(ServerConfig(model=c.model, port=c.port, seed=c.seed, weights=c.weights, **chat_settings))
        return
    with progress(f"loading {c.model}"):
        from schoolhouse.policy.policy import Policy
        from schoolhouse.serve.chat import chat as talk

        policy = Policy.load(c.model, chat=c)
        policy.sampling_weights = c.weights
    talk(policy, c.max_new_tokens, c.temperature, seed=c.seed)


def serve(args: Sequence[str]) -> None:
    """Run the command `school serve MODEL [--port 8000] [--api_key KEY]`."""
    c = parse_options(ServerConfig, args, "school serve MODEL [--port 8000] [--api_key KEY]", ("model",))
    if c is not None:
        listen(c)


def listen(c: ServerConfig) -> None:
    """Run the server until the user stops it with Ctrl-C or the process gets SIGTERM."""
    from schoolhouse.serve.auth import exposure_warning, key_or_variable
    from schoolhouse.serve.lazy_start import run

    c = c.model_copy(update={"api_key": key_or_variable(c.api_key)})
    servers: list[Any] = []

    def build() -> Any:
        from schoolhouse.serve.server import Server, build_app  # imports torch; the port is open before this import

        servers.append(Server(c))
        print(f"the model is loaded; {servers[0].registry.default_engine.room.summary()}", flush=True)
        return build_app(servers[0])

    address, listener = f"http://{c.host}:{c.port}", bind_socket(c.host, c.port)
    print(f"API: {address}/v1, web page: {address} (Ctrl-C stops the server)", flush=True)
    if warning := exposure_warning(c.host, c.api_key):
        print(warning, file=sys.stderr, flush=True)
    run(c, build, lambda: servers[0].close(), listener)


def bind_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises SchoolError if the port is not available."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SchoolError(f"cannot listen on {host}:{port} ({error.strerror}): give another --port or --host") from None


class Board(BaseConfig):
    folder: Path = Path("runs")
    """Folder that contains runs, also in subfolders."""
    host: str = "127.0.0.1"
    """Address of the page. With the default, only this machine can open the page."""
    port: int = Field(8100, ge=1, le=65535)
    api_key: str = ""
    """API key that the page requires; empty: the environment variable SCHOOLHOUSE_API_KEY, or no key if it is unset."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests can use for the board, such as board.example.org; * allows all names."""
    claims: Path | None = None
    """Folder with the results of claims."""


def board(args: Sequence[str]) -> None:
    """Run the command `school board [FOLDER] [--port 8100]`."""
    c = parse_options(Board, args, "school board [FOLDER] [--port 8100] [--claims docs/claims]", ("folder",))
    if c is None:
        return
    if not c.folder.is_dir():
        raise SchoolError(f"{c.folder} is not a folder: give the folder that contains your runs")
    import uvicorn

    from schoolhouse.board.app import build_app
    from schoolhouse.serve.auth import exposure_warning, key_or_variable

    api_key = key_or_variable(c.api_key)
    listener = bind_socket(c.host, c.port)
    print(f"board of {c.folder}: http://{c.host}:{c.port} (Ctrl-C stops it)", flush=True)
    if warning := exposure_warning(c.host, api_key):
        print(warning, file=sys.stderr, flush=True)
    app = build_app(c.folder, c.host, c.claims, api_key, c.allowed_hosts)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
