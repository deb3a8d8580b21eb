"""Config keys for the worker processes that grade completions. Every recipe that grades has the config keys of this
file."""

from __future__ import annotations

from pydantic import Field

from schoolhouse.config import BaseConfig


class WorkerSettings(BaseConfig):
    """Settings of the worker processes that grade completions. Tasks that grade in the main process ignore the worker
    settings."""

    workers: int = Field(0, ge=0)
    """Number of worker processes that grade completions. The value 0 means one worker per core of this machine."""
    timeout: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Time limit in seconds for one call of the verifier. The value 0 means 5 seconds for one completion, and 60
    seconds for a whole batch."""
    load_timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Additional seconds for a worker's first call, because the first call may load a model. The time limit for opening
    the task is `load_timeout`, but at least 120 seconds."""
    memory_limit: float = Field(2.0, ge=0, allow_inf_nan=False)
    """Memory limit in GiB for what a worker allocates after opening the task. The value 0 means no limit. The memory
    limit has no effect on macOS."""
