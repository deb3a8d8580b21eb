"""The run folder: all files that are needed to read a run, to resume it and to repeat it.

    `config.yaml`: every key of the config. If the same command is given with the same folder, the run resumes.
    `manifest.json`: the format, recipe, versions, machine, seed, state and seconds of the run.
    `metrics.jsonl`: one line per step, with numbers that do not depend on the clock.
    `times.jsonl`: the seconds from the start of the run to the end of each step, and the time of parts of the step.
    `rollouts/000012.jsonl`: the rollouts of step 12 with their rewards.
    `trees/`: the search trees of the run.
    `checkpoints/000100/`: the state after 100 steps, with the model in Hugging Face format.

A checkpoint is first written to a folder with another name and synced to the disk. The last file of a checkpoint is
manifest.json, which has the checksum of every other file. After the last file of a checkpoint is written, its folder is
renamed. When a run resumes, all data after its newest checkpoint is deleted, and the steps after the checkpoint are
done again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from schoolhouse.algorithms.groups import group_stats, rollouts_of
from schoolhouse.algorithms.reflection import reflection_stats
from schoolhouse.config import BaseConfig, dump
from schoolhouse.runs import manifest
from schoolhouse.runs.atomic_io import (
    Stateful,
    atomic_write,
    checksum,
    delete_old_checkpoints,
    delete_partial_checkpoints,
    drop_partial_line,
    fsync,
    is_disk_full,
    list_checkpoints,
    lock_folder,
    read_jsonl,
    to_json,
    verify_checkpoint,
    write_checkpoint,
)
from schoolhouse.runs.diagnostics import WINDOW, diagnose
from schoolhouse.runs.hub_cache import is_on_disk
from schoolhouse.runs.progress import phased, progress
from schoolhouse.runs.signals import Interrupts, Stopped
from schoolhouse.types import Completion, Group, Rollout, SchoolError

Item = TypeVar("Item", bound=int | tuple[Any, ...])
StatefulT = TypeVar("StatefulT", bound=Stateful)
Json = dict[str, Any]
Parse = Callable[[Rollout], Completion]

_KEPT_CHECKPOINTS = 2
_END: Any = object()


class Run:
    """An open run folder. Open a run with `Run.open`, and use the run as a context manager.

    `folder`: the folder of the run.
    `config`: the config of the recipe.
    `step`: the number of the first step that is not done yet.
    `finished`: whether all steps of the run are done.
    """

    def __init__(self, folder: Path, config: BaseConfig, recipe: str) -> None:
        self.folder, self.config, self.recipe = folder, config, recipe
        self.step = 0
        self._lock = open(folder / "lock", "a+")  # noqa: SIM115 (held until the run is closed)
        self._current_step: int | None = None  # the step whose body is running
        self._metrics: Json = {}  # metrics recorded in this step so far
        self._timings: Json = {}  # numbers of this step that depend on the clock
        self._completed = False
        self._budget = (inf, inf)  # tokens, seconds
        self._sampled_tokens, self._eval_seconds = 0, 0.0
        self._session_start, self._earlier_seconds = time.monotonic(), 0.0
        self._unsynced: set[Path] = set()
        self._recent: deque[Json] = deque(maxlen=WINDOW)  # lines of metrics.jsonl
        self._advised: set[str] = set()  # topics of the advice that was printed and still holds
        self._manifest: Json = {}

    # --- opening and closing

    @classmethod
    def open(cls, folder: Path | str, config: BaseConfig, recipe: str) -> Run:
        """Open a new run in `folder`, or resume the run in this folder from its newest checkpoint.

        Raises SchoolError if the folder contains other files, a run with another config, a run of another format, or a
        damaged checkpoint. `Run.open` also raises SchoolError if another process uses the folder.
        """
        folder = Path(folder)
        own_files = {"lock", "manifest.json", "manifest.json.partial", "config.yaml.partial"}
        is_new = not (folder / "config.yaml").exists()
        if folder.exists() and not folder.is_dir():
            raise SchoolError(f"{folder} is a file, not a folder; give a folder with --dir")
        if is_new and folder.exists() and {path.name for path in folder.iterdir()} - own_files:
            raise SchoolError(
                f"{folder} contains files but is not a run folder (no config.yaml); give another folder with --dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config, recipe)
        try:
            lock_folder(run._lock, folder)
            if is_new or {path.name for path in folder.iterdir()} <= own_files | {"config.yaml"}:  # no step was done
                run._create()
            else:
                run._resume()
        except BaseException:
            run._lock.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if not self.finished:
                with suppress(*(() if kind is None else (OSError, SchoolError))):  # the first error is the one to show
                    self._set_state("finished" if kind is None and self._completed else "stopped")
        finally:
            self._lock.close()

    def finish(self) -> None:
        """Mark the run as finished.

        If all steps are done, the end of the `with` block also marks the run as finished.
        """
        self._set_state("finished")

    def save_manifest(self) -> None:
        """Write the manifest of the run, with its duration in seconds and its number of steps so far."""
        self._set_state(self._manifest["state"])

    @property
    def finished(self) -> bool:
        return self._manifest.get("state") == "finished"

    @property
    def seconds(self) -> float:
        """The wall-clock time of this session and all earlier sessions of the run, in seconds."""
        return self._earlier_seconds + (0.0 if self.finished else time.monotonic() - self._session_start)

    def track_files(self, *files: Path | None) -> None:
        """Record the checksums of files that the run depends on.

        Raises SchoolError if one of the files has changed since the run began.
        """
        for path in filter(None, files):
            manifest.check_unchanged(self._manifest.setdefault("files", {}), str(path), checksum(path), self.folder)
        self.save_manifest()

    def set_budget(self, tokens: float = inf, seconds: float = inf) -> None:
        """Set a budget of tokens or seconds. The run ends after the step in which it reaches the budget.

        `tokens`: the maximum number of sampled tokens.
        `seconds`: the maximum time in seconds; the time of evaluations does not count.
        """
        self._budget = (tokens, seconds)
        if finite := {name: bound for name, bound in (("tokens", tokens), ("seconds", seconds)) if bound != inf}:
            self._manifest["budget"] = finite
            self.save_manifest()
        self._sampled_tokens, self._eval_seconds = manifest.budget_spent(self.folder)

    # --- the loop

    def steps(
        self, source: Iterable[Item], save: Stateful, every: int = 100, total: int | None = None
    ) -> Iterator[Item]:
        """Yield the items of `source`, and save checkpoints at regular intervals.

        An item is a step number, or a tuple whose first element is a step number. After Ctrl-C or SIGTERM the run
        finishes the current step, saves a checkpoint and raises Stopped. A second Ctrl-C or SIGTERM stops the run
        immediately.

        `source`: the items. If `source` is not a list or a range, the time until each item arrives counts as `sampling`
            in times.jsonl.
        `save`: the state that is saved once in `every` steps, and after the last step.
        `total`: the number of steps of the whole run, which is needed to show the remaining time. The default of
            `total` is `config.steps`.
        """
        total = (total or getattr(self.config, "steps", None)) if self._budget == (inf, inf) else None
        items = iter(() if self.step and self._budget_reached() else source)  # it was killed after its last step
        with Interrupts() as interrupts, progress(self.folder.name, total, self.step) as advance:
            while True:
                with nullcontext() if isinstance(source, Sequence) else self.timed("sampling"):
                    item = next(items, _END)
                if item is _END:
                    break
                self._current_step = item[0] if isinstance(item, tuple) else item
                self._metrics = {}
                yield item
                self._end_step()
                advance(1, manifest.headline(self._metrics))
                if interrupts.count or self.step % every == 0:
                    self.save_checkpoint(save)
                if self._budget_reached():
                    break
                if interrupts.count:
                    raise Stopped(f"the run was stopped after {self.step} steps; the state was saved in {self.model}")
            self._current_step = None
            self.save_checkpoint(save)
        self._completed = True

    def _budget_reached(self) -> bool:
        return self._sampled_tokens >= self._budget[0] or self.seconds - self._eval_seconds >= self._budget[1]

    def _end_step(self) -> None:
        assert self._current_step is not None
        with self.timed("io_seconds"):
            if self._metrics:
                self._append("metrics.jsonl", {"step": self._current_step, **self._metrics})
        self.step = self._current_step + 1
        self._append("times.jsonl", {"step": self._current_step, "seconds": round(self.seconds, 3), **self._timings})
        self._sampled_tokens += self._metrics.get("sampled_tokens", 0)
        self._eval_seconds += self._timings.get("eval", 0.0)
        self._timings = {}
        self._recent.append(self._metrics)
        if self.step % WINDOW == 0:
            self._advise()

    def _advise(self) -> None:
        """Print advice about problems that prevent learning.

        If a problem continues for many steps, its advice is printed only once.
        """
        advice = diagnose(self._recent)
        for topic in advice.keys() - self._advised:
            print(f"{self.folder.name}, step {self.step}: {advice[topic]}", file=sys.stderr)
        self._advised = set(advice)

    def record(
        self,
        step: int,
        groups: Sequence[Group] | None = None,
        parse: Parse | None = None,
        **metrics: Any,
    ) -> None:
        """Record the results of a step. All results of one step are written as one line of metrics.jsonl.

        `groups`: the graded rollouts, which are written to the folder rollouts/ and summarised in the metrics.
        `parse`: a function that gives the thought and the answer of a rollout as text, for the folder rollouts/.
        `metrics`: numbers, or mappings of numbers. Use `log_timing` for numbers that depend on the clock.
        """
        with self.timed("io_seconds"):
            if groups is not None:
                metrics = self._record_groups(step, groups, parse) | metrics
            if step == self._current_step:
                self._metrics |= metrics
            else:
                self._append("metrics.jsonl", {"step": step, **metrics})

    def _record_groups(self, step: int, groups: Sequence[Group], parse: Parse | None) -> Json:
        rollouts = rollouts_of(groups)
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        completions = [parse(rollout) for rollout in rollouts] if parse else None
        path = self.folder / "rollouts" / f"{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._unsynced |= {path, path.parent}
        with self._room_for(path), path.open("a", encoding="utf-8") as file:
            for row in zip(rollouts, verdicts, completions or [None] * len(rollouts), strict=True):
                file.write(to_json(manifest.rollout_row(*row)) + "\n")
        return group_stats(groups, completions) | (reflection_stats(groups, completions) if completions else {})

    def log_timing(self, **seconds: float | dict[str, float]) -> None:
        """Add numbers that depend on the clock to the line of the current step in times.jsonl.

        Numbers that are zero are not written.
        """
        self._timings |= {name: spent for name, spent in seconds.items() if spent}

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Measure how many seconds the block of the `with` statement takes.

        The measured seconds are added to `name` in the line of the current step in times.jsonl.
        """
        start = time.monotonic()
        yield
        self._timings[name] = round(self._timings.get(name, 0.0) + time.monotonic() - start, 6)

    # --- checkpoints

    @property
    def model(self) -> Path:
        """The folder of the newest model, in Hugging Face format."""
        if not (newest := self.latest_checkpoint()):
            raise SchoolError(f"the run {self.folder} has no checkpoint yet; wait until the run saves a checkpoint")
        return newest

    def latest_checkpoint(self) -> Path | None:
        """Return the folder of the newest complete checkpoint, or None if there is no checkpoint."""
        return (list_checkpoints(self.folder / "checkpoints") or [None])[-1]

    def model_path(self, model: Path | str) -> Path:
        """Return the folder to load the model from: the newest checkpoint, or `model` if there is no checkpoint.

        Raises SchoolError if the weights of `model` have changed since the run began. The weights must not change,
        because a recipe may load `model` again later.
        """
        self.track_model(model)
        return self.latest_checkpoint() or Path(model)

    def track_model(self, model: Path | str) -> None:
        """Record checksums of the weights of a model that the run depends on.

        Raises SchoolError if the weights have changed since the run began.
        """
        if not self.finished and is_on_disk(model):
            digest = manifest.weights_digest(model)
            manifest.check_unchanged(self._manifest.setdefault("models", {}), str(model), digest, self.folder)
            self.save_manifest()

    def restore(self, state: StatefulT) -> StatefulT:
        """Load the training state of the newest checkpoint into `state`. If there is no checkpoint, nothing is loaded.

        The model in `state` must have been loaded from the folder that `model_path` returned.
        """
        if newest := self.latest_checkpoint():
            import torch

            state.load_state_dict(torch.load(newest / "trainer.pt", map_location="cpu", weights_only=True))
        return state

    @phased("saving a checkpoint")
    def save_checkpoint(self, state: Stateful) -> Path:
        """Save the state after `step` steps as a checkpoint. If saving fails, no incomplete checkpoint is left.

        The new checkpoint and one older checkpoint are kept, and all other checkpoints are deleted. Raises SchoolError
        if the disk is full. The newest complete checkpoint is never deleted to free disk space.
        """
        target = self.folder / "checkpoints" / f"{self.step:06d}"
        if target.exists():
            return target
        try:
            with self.timed("io_seconds"):
                for path in self._unsynced:
                    fsync(path)
                self._unsynced.clear()
                size = _size(self.folder / "metrics.jsonl")
                write_checkpoint(target, state, {"step": self.step, "metrics_bytes": size})
        except Exception as error:
            if not is_disk_full(error):
                raise
            if len(list_checkpoints(target.parent)) > 1:
                delete_old_checkpoints(target.parent, 1)
                return self.save_checkpoint(state)
            raise self._disk_full(f"the disk is full: {target} could not be written ({error})") from error
        delete_old_checkpoints(target.parent, _KEPT_CHECKPOINTS)
        self._set_state("running")
        return target

    # --- creating and resuming

    def _create(self) -> None:
        self._manifest = {
            "format": manifest.FORMAT,
            "recipe": self.recipe,
            "seed": getattr(self.config, "seed", None),
            **manifest.environment(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._set_state("running")
        with self._room_for(self.folder / "config.yaml"):
            atomic_write(self.folder / "config.yaml", dump(self.config))

    def _resume(self) -> None:
        self._manifest = manifest.read_manifest(self.folder / "manifest.json")
        manifest.check_same_config(self.folder, self._manifest.get("recipe"), self.recipe, self.config)
        delete_partial_checkpoints(self.folder / "checkpoints")
        newest = self.latest_checkpoint()
        saved = verify_checkpoint(newest) if newest else {"step": 0, "metrics_bytes": 0}
        self.step = int(saved["step"])
        drop_partial_line(self.folder / "times.jsonl")
        times = read_jsonl(self.folder / "times.jsonl")
        known = [self._manifest.get("seconds"), *(row.get("seconds") for row in times[-1:])]
        self._earlier_seconds = max([0.0, *(float(number) for number in known if isinstance(number, (int, float)))])
        if self.finished:
            return
        metrics = self.folder / "metrics.jsonl"
        if (size := _size(metrics)) < saved["metrics_bytes"]:
            raise SchoolError(
                f"the file {metrics} has lost lines: it has {size} bytes, but had {saved['metrics_bytes']} bytes "
                f"when {newest} was written; restore the whole file, or start a new run in another folder with --dir"
            )
        if metrics.exists():
            os.truncate(metrics, saved["metrics_bytes"])
        for path in (self.folder / "rollouts").glob("*.jsonl"):
            if path.stem.isdigit() and int(path.stem) >= self.step:
                path.unlink()
        if message := manifest.record_resume(self._manifest, self.step):
            print(f"{self.folder.name} {message}", file=sys.stderr)
        self._set_state("running")

    # --- writing

    def _set_state(self, state: str) -> None:
        self._earlier_seconds, self._session_start = self.seconds, time.monotonic()
        self._manifest |= {"state": state, "step": self.step, "seconds": round(self._earlier_seconds, 3)}
        with self._room_for(self.folder / "manifest.json"):
            atomic_write(self.folder / "manifest.json", to_json(self._manifest, 2))

    def _append(self, name: str, row: Json) -> None:
        path = self.folder / name
        self._unsynced |= {path, self.folder}
        with self._room_for(path), path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    @contextmanager
    def _room_for(self, path: Path) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise self._disk_full(f"the disk is full: {path} could not be written ({error})") from None

    def _disk_full(self, problem: str) -> SchoolError:
        newest = self.latest_checkpoint()
        kept = f"the checkpoint {newest} is complete" if newest else "there was no checkpoint yet"
        return SchoolError(
            f"{problem}.\n{kept}; free some space, and the same command resumes from step "
            f"{int(newest.name) if newest else 0}"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read_metrics(folder: Path) -> list[Json]:
    """Read the metrics.jsonl of a run. Returns one mapping for each step."""
    return read_jsonl(folder / "metrics.jsonl")
