"""Run coroutines of verifiers. All coroutines of a process run in one event loop.

A verifier can keep a client of a web service between two calls. Such a client works only in its own event loop, so the
event loop is kept too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in the event loop of this process, and return its result."""
    return _runner().run(coroutine)


@lru_cache(maxsize=1)
def _runner() -> asyncio.Runner:
    return asyncio.Runner()
