"""A server command in a process of its own, for the time of a test."""

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


class RunningServer(NamedTuple):
    """Its address, and its process."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def running_server(
    *args: str, ready_path: str = "/", environment: Mapping[str, str] | None = None
) -> Generator[RunningServer]:
    """`school ARGS --port FREE`. The block begins with the first response at `ready_path`."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    command = [sys.executable, "-m", "schoolhouse", *args, "--port", str(port)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise AssertionError(f"the server ended: {process.stdout.read() if process.stdout else ''}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready_path}", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield RunningServer(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.communicate()


def get(
    url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of one request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers or {}))) as response:
            return response.status, response.read().decode(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)
