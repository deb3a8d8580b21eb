"""Run a program and its tests in a separate process with limits. `run_tests` starts this file as a script.

The script reads the program and the tests as JSON from standard input. The script writes the results to a separate
pipe, and each result starts with a secret mark. Because of the secret mark, the output of the program cannot be
mistaken for a result.
If the program ends the process early, the remaining tests have no result.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

TIME_LIMIT = 4.0
"""The time limit in seconds for a program with all its tests."""

MEMORY_LIMIT = 1 << 30
"""The largest address space of a program, in bytes."""


_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


class ProgramRun(NamedTuple):
    """The result of a run: the number of passed tests, the number of all tests, and the first error."""

    passed: int
    total: int
    error: str


def run_tests(code: str, tests: Sequence[str], setup: str = "", time_limit: float = TIME_LIMIT) -> ProgramRun:
    """Run a program in a new process, and then run each test in the namespace of the program.

    The process has limits on time, memory, open files and the size of files. The process has an empty folder and no
    environment variables. The process has no network if the system allows `unshare`. The process can read all files
    that you can read, so the process is not a complete sandbox.
    """
    total, mark = len(tests), secrets.token_hex(8)
    read, write = os.pipe()
    job = json.dumps(
        {"code": code, "tests": list(tests), "setup": setup, "seconds": time_limit, "fd": write, "mark": mark}
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", os.path.abspath(__file__)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder},
            pass_fds=(write,),
            start_new_session=True,
        )
        os.close(write)
        try:
            process.communicate(job.encode(), timeout=time_limit)
            error = "" if process.returncode == 0 else f"the program ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            error = f"no result within {time_limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)
            process.wait()
            with os.fdopen(read, "rb") as pipe:
                lines = pipe.read(1 << 20).decode("utf-8", "replace").splitlines()
    results = [json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)]
    passed = {index for index, message in results if message == "passed"}
    first = next((message for _, message in results if message != "passed"), "")
    return ProgramRun(len(passed), total, first or error or ("" if len(passed) == total else "the program ended early"))


def _main() -> None:
    job: dict[str, Any] = json.loads(sys.stdin.read())
    descriptor, mark = job["fd"], job.pop("mark")
    _limit(job["seconds"])
    write, dumps, exception = os.write, json.dumps, Exception
    namespace: dict[str, Any] = {"__name__": "__main__"}
    sys.stdin = io.StringIO()

    def report(index: int, message: str) -> None:
        write(descriptor, (mark + dumps([index, message[:200]]) + "\n").encode())

    for index, text in [(-2, job["setup"]), (-1, job["code"]), *enumerate(job["tests"])]:
        try:
            exec(compile(text, "<program>" if index < 0 else f"<test {index + 1}>", "exec"), namespace)
        except AssertionError:
            report(index, f"test {index + 1} failed: {text.strip().splitlines()[0] if text.strip() else ''}")
        except (exception, SystemExit, KeyboardInterrupt) as error:
            report(index, f"{type(error).__name__}: {error}")
            if index < 0:
                return
        else:
            if index >= 0:
                report(index, "passed")


def _limit(seconds: float) -> None:
    import resource

    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: MEMORY_LIMIT,
        resource.RLIMIT_FSIZE: 1 << 24,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(name, (value, value))
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


if __name__ == "__main__":
    _main()
