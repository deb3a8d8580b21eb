"""`school board`: run folders as a local web page. Reads what runs write, and nothing else; asks nobody outside.

/api/runs       every run with its state          /api/rollouts   a page of rollouts, filtered and sorted
/api/run        one run: config, numbers, advice  /api/group      all samples of a problem, token by token
/api/curves     numbers of several runs           /api/weights    what a checkpoint thinks of those tokens
/api/claims     verdicts and figures
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from schoolhouse import __version__
from schoolhouse.board import rollout_index
from schoolhouse.board.tokens import token_rows
from schoolhouse.board.trees import steps_of, summary, trees
from schoolhouse.runs.atomic_io import read_json, read_jsonl
from schoolhouse.runs.diagnostics import diagnose
from schoolhouse.runs.inspect import RunStatus, find_runs, inspect, is_run
from schoolhouse.runs.manifest import ENVIRONMENT_KEYS, differences, flatten_numbers, read_config
from schoolhouse.runs.run import read_metrics
from schoolhouse.serve.auth import Guard, told
from schoolhouse.types import SchoolError
from schoolhouse.web import PAGES

MOST_POINTS = 2_000
PER_PAGE = 50
Json = dict[str, Any]


class Board:
    """A folder of runs. Names of runs are paths inside it; nothing outside it is ever read."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._making: dict[Path, subprocess.Popen[bytes]] = {}
        self._seen: dict[Path, tuple[tuple[float, ...], Json]] = {}

    def runs(self) -> list[Json]:
        return [self.row(folder) for folder in find_runs(self.root)]

    def row(self, folder: Path) -> Json:
        """A run in the list. Kept until one of its files changes: a finished run is read once."""
        name = str(folder.relative_to(self.root)) or "."
        files = [folder / file for file in ("manifest.json", "metrics.jsonl", "config.yaml")]
        stamp = tuple(path.stat().st_mtime if path.exists() else 0.0 for path in files)
        known = self._seen.get(folder)
        if known and known[0] == stamp and known[1]["state"] != "running":
            return known[1]
        try:
            row = _row(name, inspect(folder))
        except SchoolError as error:
            row = {
                "name": name,
                "recipe": "",
                "state": "damaged",
                "done": 0,
                "of": None,
                "seconds": 0,
                "result": str(error),
            }
        self._seen[folder] = (stamp, row)
        return row

    def place(self, name: str) -> Path:
        """The folder of a run. Raises 404 for what is no run of this board, wherever it may lead."""
        folder = (self.root / name.replace("\0", "\ufffd")).resolve()
        with suppress(OSError):  # a name that is too long
            if folder.is_relative_to(self.root) and is_run(folder):
                return folder
        raise HTTPException(404, f"there is no run `{name}` here")

    def indexed(self, run: Path) -> bool:
        """Whether the index is up to date; if not, a process is at work on it."""
        worker = self._making.get(run)
        if worker and worker.poll() is None:
            return False
        if not rollout_index.stale(run):
            return True
        self._making[run] = subprocess.Popen([sys.executable, "-m", "schoolhouse.board.rollout_index", str(run)])
        return False


def build_app(root: Path, host: str = "127.0.0.1", claims: Path | None = None) -> FastAPI:
    """The board of one folder. `claims` holds results of claims (docs/claims)."""
    board = Board(root)
    app = FastAPI(title="schoolhouse board", version=__version__, docs_url=None, redoc_url=None)

    @app.exception_handler(SchoolError)
    async def damaged(_: Request, error: SchoolError) -> Response:
        return JSONResponse(told(str(error), "damaged"), 422)

    @app.get("/api/runs")
    def runs() -> list[Json]:
        return board.runs()

    @app.get("/api/run")
    def run(name: str) -> Json:
        folder = board.place(name)
        metrics, manifest = read_metrics(folder), read_json(folder / "manifest.json")
        config = read_config(folder / "config.yaml")
        return {
            **board.row(folder),
            "config": config,
            "metrics": names_of(metrics),
            "advice": list(diagnose(metrics).values()),
            "machine": {key: manifest.get(key) for key in ENVIRONMENT_KEYS},
            "rollouts": (folder / "rollouts").is_dir(),
            "trees": steps_of(folder),
            "signal": signal(metrics),
        }

    @app.get("/api/curves")
    def curves(
        name: Annotated[list[str], Query(max_length=64)],
        metric: Annotated[list[str], Query(max_length=64)],
        against: Literal["step", "tokens", "seconds"] = "step",
    ) -> list[Json]:
        return [curve(board.place(one), one, metric, against) for one in name]

    @app.get("/api/rollouts")
    def rollouts(
        name: str,
        first: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
        last: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
        outcome: rollout_index.Outcome = "",
        problem: str = "",
        finish_reason: str = "",
        least: float | None = None,
        most: float | None = None,
        order: rollout_index.Order = "step",
        down: bool = True,
        page: Annotated[int, Query(ge=0, le=10**7)] = 0,
    ) -> Json:
        folder = board.place(name)
        ready = board.indexed(folder)
        asked = rollout_index.Query(first, last, outcome, problem, finish_reason, least, most, order, down)
        found = rollout_index.find(folder, asked, page * PER_PAGE, PER_PAGE)
        return {
            "ready": ready,
            "count": rollout_index.count(folder, asked),
            "page": page,
            "per_page": PER_PAGE,
            "rows": [{key: value for key, value in row.items() if key not in _HEAVY} for row in found],
        }

    @app.get("/api/group")
    def group(name: str, step: Annotated[int, Query(ge=0, lt=2**62)], problem: str) -> Json:
        folder = board.place(name)
        ready = board.indexed(folder)
        rows = rollout_index.group(folder, step, problem)
        if ready and not rows:
            raise HTTPException(404, f"there are no samples of this problem in step {step}")
        return {"ready": ready, "rows": token_rows(folder, rows), "across": rollout_index.across(folder, problem)}

    @app.get("/api/weights")
    def weights(
        name: str,
        step: Annotated[int, Query(ge=0, lt=2**62)],
        problem: str,
        checkpoint: Annotated[int | None, Query(ge=0)] = None,
    ) -> Json:
        from schoolhouse.board.rescore import checkpoints, nearest, weigh  # loads torch, which the board does without

        folder = board.place(name)
        rows, kept = rollout_index.group(folder, step, problem), checkpoints(folder)
        if not rows or not kept:
            raise HTTPException(
                404, "this run has kept no checkpoint" if rows else "these samples are not in the index"
            )
        chosen = nearest(kept, rows[0]["policy_version"]) if checkpoint is None else checkpoint
        return {"checkpoint": chosen, "checkpoints": kept, "rows": weigh(folder, chosen, rows)}

    @app.get("/api/trees")
    def searched(name: str, step: Annotated[int, Query(ge=0, lt=2**62)]) -> Json:
        folder = board.place(name)
        return {"steps": steps_of(folder), "rows": [summary(tree) for tree in trees(folder, step)]}

    @app.get("/api/tree")
    def tree(name: str, step: Annotated[int, Query(ge=0, lt=2**62)], row: Annotated[int, Query(ge=0)]) -> Json:
        found = trees(board.place(name), step)
        if row >= len(found):
            raise HTTPException(404, f"{len(found)} trees were recorded in step {step}")
        return found[row]

    @app.get("/api/difference")
    def difference(one: str, other: str) -> list[str]:
        here, there = (read_config(board.place(name) / "config.yaml") for name in (one, other))
        return differences(here, there)

    @app.get("/api/claims")
    def verdicts() -> list[Json]:
        return [read_json(path) for path in sorted(claims.glob("*.json"))] if claims else []

    @app.get("/api/figure/{claim}.png")
    def figure(claim: str) -> Response:
        path = claims / f"{claim}.png" if claims and claim.isidentifier() else None
        if path is None or not path.is_file():
            raise HTTPException(404, f"there is no figure of `{claim}`")
        return FileResponse(path)

    @app.get("/")
    def page() -> Response:
        return FileResponse(PAGES / "board.html")

    app.mount("/web", StaticFiles(directory=PAGES), name="web")
    app.add_middleware(Guard, host=host)
    return app


_HEAVY = ("tokens", "logprob", "sampled_spans")


def _row(name: str, seen: RunStatus) -> Json:
    done, of = seen.steps
    return {
        "name": name,
        "recipe": seen.recipe,
        "state": seen.state,
        "done": done,
        "of": of,
        "seconds": seen.seconds,
        "result": seen.result,
    }


def names_of(metrics: Sequence[Json]) -> list[str]:
    """Names of all numbers of a run, in the order in which they first appear."""
    sample = [*metrics[:5], *metrics[-5:], *metrics[:: max(1, len(metrics) // 50)]]
    return [name for name in dict.fromkeys(name for line in sample for name in flatten_numbers(line)) if name != "step"]


def curve(folder: Path, name: str, wanted: Sequence[str], against: str) -> Json:
    """Some numbers of one run against steps, sampled tokens or seconds; thinned to what a page can show."""
    metrics = read_metrics(folder)
    seconds = {row["step"]: row["seconds"] for row in read_jsonl(folder / "times.jsonl") if "seconds" in row}
    x: list[float] = []
    y: dict[str, list[float | None]] = {metric: [] for metric in wanted}
    tokens, every = 0, max(1, -(-len(metrics) // MOST_POINTS))
    for at, line in enumerate(metrics):
        tokens += line.get("sampled_tokens", 0)
        if at % every and at != len(metrics) - 1 and "eval" not in line:
            continue
        here = flatten_numbers(line)
        x.append({"step": line["step"], "tokens": tokens, "seconds": seconds.get(line["step"], 0.0)}[against])
        for metric in wanted:
            y[metric].append(here.get(metric))
    seed = read_config(folder / "config.yaml").get("seed")
    return {"name": name, "x": x, "y": y, "seed": seed, "steps": len(metrics)}


def signal(metrics: Sequence[Json]) -> str:
    """What became of the last step's problems, in words."""
    line = next((line for line in reversed(metrics) if line.get("groups")), None)
    if line is None:
        return ""
    groups, mixed = line["groups"], line.get("groups_with_signal", 0)
    parts = [
        f"{line[key]} {words}"
        for key, words in (
            ("all_correct", "were solved by all samples"),
            ("all_incorrect", "by none"),
            ("all_truncated", "were cut off in all"),
            ("groups_ungraded", "could not be judged"),
        )
        if line.get(key)
    ]
    rest = f"; {', '.join(parts)}" if parts else ""
    return f"In step {line['step']} {mixed} of {groups} problems had answers of different reward, and taught{rest}."
