"""Config keys for the worker processes that grade completions. Every recipe that grades has these keys."""

from __future__ import annotations

from pydantic import Field

from schoolhouse.config import BaseConfig


class WorkerSettings(BaseConfig):
    """Settings of the worker processes that grade completions. Tasks that grade in the main process ignore them."""

    workers: int = Field(0, ge=0)
    """Number of worker processes that grade completions. With 0, one worker per core of this machine."""
    timeout: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Seconds for one call of the verifier. With 0: 5 seconds for one completion, 60 seconds for a whole batch."""
    load_timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    """More seconds for the first call of a worker, which may load a model. A worker also has this time, and at least
    120 seconds, to open the task."""
    memory_limit: float = Field(2.0, ge=0, allow_inf_nan=False)
    """GiB that a worker may allocate after it has opened the task. With 0, there is no limit. macOS has no limit."""
