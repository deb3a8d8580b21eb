"""What a server is told. Imports nothing heavy, so that `school serve --help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from schoolhouse.config import BaseConfig


class Serve(BaseConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine reaches the server unless it is another."""
    port: int = Field(8000, ge=1, le=65535)
    name: str = ""
    """What the model is called in requests; none: the folder's name."""
    key: str = ""
    """What clients have to send as their API key; none: nobody is asked."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may ask, such as http://localhost:3000; the server's own page always may."""
    slots: int = Field(64, gt=0)
    """Answers that are sampled together."""
    queue: int = Field(256, ge=0)
    """Answers that may wait."""
    context: int | None = Field(None, gt=0)
    """Tokens of a request and its answer; none: what the model reads."""
    seconds: float = Field(600.0, gt=0)
    """A request may take."""
    task: str = ""
    """The task that problems are of, for searches and judges of steps; none: a step is a line, or what the judge's run
    says."""
    judge: Path | None = None
    """A reward model (`school train process_reward`): its opinion of answers, and searches with `values=judge`."""
    judged: Literal["steps", "end", ""] = ""
    """What it was trained to judge: each step, or whole solutions; none: what its run says, or steps."""
    votes: Path = Path("votes.jsonl")
    """File for the choices of who compares two models on the page."""
    seed: int = 0
