"""`school bench`: speed beside a peer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from schoolhouse.cli.options import parse_options, progress_bar, take_option
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, to_json


class Bench(BaseConfig):
    kind: str
    """Work to race in: sampler, learner, grpo, pretrain, server, search; or `study`, how our cost grows and where our
    time goes; or `page`, docs/performance.md from the files in the folder that --json names."""
    against: str = ""
    """The peer to take turns with."""
    size: str | None = None
    """Of the model: 1M, 3M, 10M, 30M, 100M; 3M unless given, and for pretrain that of nanochat's CPU configuration."""
    repeats: int = Field(3, gt=0)
    problems: int = Field(32, gt=0)
    samples: int = Field(16, gt=0)
    """Answers to each problem."""
    threads: int = Field(2, gt=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type of the peer: give it the one it is quicker in. Ours is what `school train` picks on this machine."""
    python: Path | None = None
    """Python of the environment that the peer lives in, if not this one."""
    source: Path | None = None
    """Checkout of a peer that is run from its own source."""
    model: Path | None = None
    """search: folder of a model that was taught the task, or of its run."""
    task: str = ""
    """search: what is solved, such as game24:PATH.csv."""
    search: str = "tot?thoughts=propose&samples=32&lists=2&listed=560&length=64"
    """search: how; the peer gives as many plain answers to each problem as --samples says."""


def bench(words: Sequence[str]) -> None:
    """school bench KIND --against PEER"""
    file, words = take_option(words, "--json", "")
    usage = "school bench KIND --against PEER [--size 3M] [--repeats 3] [--json FILE]"
    c = parse_options(Bench, words, usage, ("kind",))
    if c is None:
        return
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the race, which may take an hour
    from schoolhouse.bench.benchmark import bench as measure
    from schoolhouse.bench.benchmark import table
    from schoolhouse.bench.page import write_page
    from schoolhouse.bench.profile import breakdown, curves

    if c.kind == "page":
        write_page(Path(file or "runs/bench"), Path("docs/performance.md"))
        return
    if c.kind == "study":
        parts = [breakdown(size, c.threads) for size in ("3M", "30M")]
        text = to_json({"curves": curves(), "breakdown": parts[0] | parts[1]}, 2)
        print(text)
        if file:
            atomic_write(Path(file), text + "\n")
        return
    with progress_bar(f"{c.kind}: ours and {c.against}") as tell:
        result = measure(c.kind, c.against, c.size, c.model_dump(mode="json"), tell)
    print(table(result))
    if file:
        atomic_write(Path(file), to_json(result, 2) + "\n")
