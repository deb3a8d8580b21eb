"""A command that listens, in a process of its own, until a test is over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple


class Listening(NamedTuple):
    """Where it listens, and its process."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def listening(*words: str, ready: str = "/", environment: Mapping[str, str] | None = None) -> Generator[Listening]:
    """`school WORDS --port FREE`, from its first answer at the path `ready` on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "schoolhouse", *words, "--port", str(port)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise AssertionError(f"it ended: {process.stdout.read() if process.stdout else ''}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield Listening(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.communicate()


def get(
    url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of one request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers or {}))) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)
