"""`school board`: a local web page of run folders. The page reads the files of runs and loads nothing from other hosts.

/api/runs              every run with its state.
/api/run               the config, the metrics and advice for one run.
/api/curves            the metrics of several runs.
/api/config_diff       the differences between two configs.
/api/rollouts          a page of filtered and sorted rollouts.
/api/group             the samples of a problem in one step, token by token.
/api/rescore           the samples of a problem, scored by another checkpoint of the run.
/api/trees, /api/tree  the search trees of a step, and one of these trees.
/api/claims            the claims with their results.
/api/figure/CLAIM.png  the figure of a claim.
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
from schoolhouse.board.tokens import rows_with_tokens, without_raw_columns
from schoolhouse.board.trees import read_trees, tree_steps, tree_summary
from schoolhouse.runs.atomic_io import read_json, read_jsonl
from schoolhouse.runs.diagnostics import diagnose
from schoolhouse.runs.inspect import RunStatus, find_runs, inspect, is_run
from schoolhouse.runs.manifest import ENVIRONMENT_KEYS, differences, flatten_numbers, read_config, read_manifest
from schoolhouse.runs.run import read_metrics
from schoolhouse.serve.auth import AccessControl, error_body
from schoolhouse.types import SchoolError
from schoolhouse.web import PAGES

MAX_POINTS = 2_000  # points of a curve
PER_PAGE = 50
Json = dict[str, Any]
Step = Annotated[int, Query(ge=0, lt=2**62)]
OptionalStep = Annotated[int | None, Query(ge=0, lt=2**62)]
XAxis = Literal["step", "tokens", "seconds"]


class Board:
    """A folder of runs. The name of a run is its path inside the folder. Files outside the folder are never read."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._indexers: dict[Path, subprocess.Popen[bytes]] = {}
        self._cached_rows: dict[Path, tuple[tuple[float, ...], Json]] = {}

    def runs(self) -> list[Json]:
        return [self.row(folder) for folder in find_runs(self.root)]

    def row(self, folder: Path) -> Json:
        """The row of a run in the list of runs. The row is cached until a file of the run changes."""
        name = str(folder.relative_to(self.root)) or "."
        files = [folder / file for file in ("manifest.json", "metrics.jsonl", "config.yaml")]
        modified = tuple(path.stat().st_mtime if path.exists() else 0.0 for path in files)
        cached = self._cached_rows.get(folder)
        if cached and cached[0] == modified and cached[1]["state"] != "running":
            return cached[1]
        try:
            status = inspect(folder)
        except SchoolError as error:
            status = RunStatus(folder, "", "damaged", (0, None), 0.0, 0.0, None, result=str(error))
        row = _run_row(name, status)
        self._cached_rows[folder] = (modified, row)
        return row

    def folder_of(self, name: str) -> Path:
        """The folder of a run. Raises HTTPException 404 if the board's folder has no run with this name."""
        folder = (self.root / name.replace("\0", "\ufffd")).resolve()
        with suppress(OSError):  # the name is too long
            if folder.is_relative_to(self.root) and is_run(folder):
                return folder
        raise HTTPException(404, f"unknown run `{name}`; /api/runs lists the runs")

    def is_indexed(self, run: Path) -> bool:
        """Return whether the index is up to date. If the index is old, the method starts a process that updates it.

        No second process is started while an indexing process is running.
        """
        indexer = self._indexers.get(run)
        if indexer and indexer.poll() is None:
            return False
        if not rollout_index.stale_files(run):
            return True
        self._indexers[run] = subprocess.Popen([sys.executable, "-m", "schoolhouse.board.rollout_index", str(run)])
        return False


def build_app(
    root: Path,
    host: str = "127.0.0.1",
    claims: Path | None = None,
    api_key: str = "",
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """Build the board of one folder of runs. `claims` is a folder with results of claims (docs/claims).

    The docstring of the class `AccessControl` explains the other arguments.
    """
    board = Board(root)
    app = FastAPI(title="schoolhouse board", version=__version__, docs_url=None, redoc_url=None)

    @app.exception_handler(SchoolError)
    async def damaged(_: Request, error: SchoolError) -> Response:
        return JSONResponse(error_body(str(error), "damaged_run"), 422)

    @app.get("/api/runs")
    def list_runs() -> list[Json]:
        return board.runs()

    @app.get("/api/run")
    def get_run(name: str) -> Json:
        folder = board.folder_of(name)
        metrics, manifest = read_metrics(folder), read_manifest(folder / "manifest.json")
        return {
            **board.row(folder),
            "config": read_config(folder / "config.yaml"),
            "metrics": metric_names(metrics),
            "advice": list(diagnose(metrics).values()),
            "environment": {key: manifest.get(key) for key in ENVIRONMENT_KEYS},
            "has_rollouts": (folder / "rollouts").is_dir(),
            "tree_steps": tree_steps(folder),
            "group_summary": group_summary(metrics),
        }

    @app.get("/api/curves")
    def get_curves(
        name: Annotated[list[str], Query(max_length=64)],
        metric: Annotated[list[str], Query(max_length=64)],
        x_axis: XAxis = "step",
    ) -> list[Json]:
        return [curve(board.folder_of(run), run, metric, x_axis) for run in name]

    @app.get("/api/rollouts")
    def get_rollouts(
        name: str,
        min_step: OptionalStep = None,
        max_step: OptionalStep = None,
        correctness: rollout_index.Correctness = "",
        problem: str = "",
        finish_reason: str = "",
        min_reward: float | None = None,
        max_reward: float | None = None,
        sort_by: rollout_index.SortBy = "step",
        descending: bool = True,
        page: Annotated[int, Query(ge=0, le=10**7)] = 0,
    ) -> Json:
        folder = board.folder_of(name)
        indexed = board.is_indexed(folder)
        query = rollout_index.RolloutQuery(
            min_step, max_step, correctness, problem, finish_reason, min_reward, max_reward, sort_by, descending
        )
        rows = rollout_index.find(folder, query, page * PER_PAGE, PER_PAGE)
        return {
            "indexed": indexed,
            "total": rollout_index.count(folder, query),
            "page": page,
            "per_page": PER_PAGE,
            "rows": [without_raw_columns(row) for row in rows],
        }

    @app.get("/api/group")
    def get_group(name: str, step: Step, problem: str) -> Json:
        folder = board.folder_of(name)
        indexed = board.is_indexed(folder)
        rows = rollout_index.group(folder, step, problem)
        if indexed and not rows:
            raise HTTPException(404, f"no samples of problem `{problem}` in step {step}")
        return {
            "indexed": indexed,
            "rows": rows_with_tokens(folder, rows),
            "history": rollout_index.problem_history(folder, problem),
        }

    # POST, because the request loads a model: with POST, browsers name the origin of the page that sends the request
    @app.post("/api/rescore")
    def compute_token_scores(
        name: str, step: Step, problem: str, checkpoint: Annotated[int | None, Query(ge=0)] = None
    ) -> Json:
        from schoolhouse.board.rescore import checkpoint_steps, nearest_checkpoint, rescore  # imports torch

        folder = board.folder_of(name)
        rows, kept = rollout_index.group(folder, step, problem), checkpoint_steps(folder)
        if not rows:
            raise HTTPException(404, f"no samples of problem `{problem}` in step {step} are in the index")
        if not kept:
            raise HTTPException(404, f"run `{name}` has no checkpoint")
        chosen = nearest_checkpoint(kept, rows[0]["policy_version"]) if checkpoint is None else checkpoint
        return {"checkpoint": chosen, "checkpoints": kept, "rows": rescore(folder, chosen, rows)}

    @app.get("/api/trees")
    def get_trees(name: str, step: Step) -> Json:
        folder = board.folder_of(name)
        return {"steps": tree_steps(folder), "rows": [tree_summary(tree) for tree in read_trees(folder, step)]}

    @app.get("/api/tree")
    def get_tree(name: str, step: Step, row: Annotated[int, Query(ge=0)]) -> Json:
        trees = read_trees(board.folder_of(name), step)
        if row >= len(trees):
            raise HTTPException(404, f"no tree {row}: step {step} has {len(trees)} recorded trees, counted from 0")
        return trees[row]

    @app.get("/api/config_diff")
    def get_config_diff(old: str, new: str) -> list[str]:
        old_config, new_config = (read_config(board.folder_of(name) / "config.yaml") for name in (old, new))
        return differences(old_config, new_config)

    @app.get("/api/claims")
    def get_claims() -> list[Json]:
        return [read_json(path) for path in sorted(claims.glob("*.json"))] if claims else []

    @app.get("/api/figure/{claim}.png")
    def get_figure(claim: str) -> Response:
        path = claims / f"{claim}.png" if claims and claim.isidentifier() else None
        if path is None or not path.is_file():
            raise HTTPException(404, f"no figure of claim `{claim}`")
        return FileResponse(path)

    @app.get("/")
    def get_page() -> Response:
        return FileResponse(PAGES / "board.html")

    app.mount("/web", StaticFiles(directory=PAGES), name="web")
    app.add_middleware(AccessControl, host=host, api_key=api_key, allowed_hosts=allowed_hosts)
    return app


def _run_row(name: str, status: RunStatus) -> Json:
    steps_done, steps_total = status.steps
    return {
        "name": name,
        "recipe": status.recipe,
        "state": status.state,
        "steps_done": steps_done,
        "steps_total": steps_total,
        "seconds": status.seconds,
        "result": status.result,
    }


def metric_names(metrics: Sequence[Json]) -> list[str]:
    """The names of all numbers in a run's metrics, in the order of their first appearance."""
    lines = [*metrics[:5], *metrics[-5:], *metrics[:: max(1, len(metrics) // 50)]]
    return [name for name in dict.fromkeys(name for line in lines for name in flatten_numbers(line)) if name != "step"]


def curve(folder: Path, name: str, names: Sequence[str], x_axis: XAxis) -> Json:
    """Curves of one run's metrics over steps, sampled tokens or seconds, with about `MAX_POINTS` points at most."""
    metrics = read_metrics(folder)
    seconds = {row["step"]: row["seconds"] for row in read_jsonl(folder / "times.jsonl") if "seconds" in row}
    x: list[float] = []
    y: dict[str, list[float | None]] = {metric: [] for metric in names}
    tokens, stride = 0, max(1, -(-len(metrics) // MAX_POINTS))
    for index, line in enumerate(metrics):
        tokens += line.get("sampled_tokens", 0)
        if index % stride and index != len(metrics) - 1 and "eval" not in line:
            continue
        values = flatten_numbers(line)
        x.append({"step": line["step"], "tokens": tokens, "seconds": seconds.get(line["step"], 0.0)}[x_axis])
        for metric in names:
            y[metric].append(values.get(metric))
    seed = read_config(folder / "config.yaml").get("seed")
    return {"name": name, "x": x, "y": y, "seed": seed, "steps": len(metrics)}


def group_summary(metrics: Sequence[Json]) -> str:
    """A text that says how many groups of the last step have a learning signal, and why the other groups have none."""
    line = next((line for line in reversed(metrics) if line.get("groups")), None)
    if line is None:
        return ""
    others = [
        f"{line[key]} {words}"
        for key, words in (
            ("all_correct", "all correct"),
            ("all_incorrect", "all incorrect"),
            ("all_truncated", "all truncated"),
            ("groups_ungraded", "not graded"),
        )
        if line.get(key)
    ]
    with_signal = f"{line.get('groups_with_signal', 0)} of {line['groups']} groups have different rewards"
    return f"Step {line['step']}: {'; '.join([with_signal, *others])}."
