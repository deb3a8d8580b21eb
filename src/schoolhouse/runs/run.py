"""The run folder: everything needed to read a run, to go on with it and to repeat it.

    config.yaml       what was asked for; the same command on the same folder goes on where it stopped
    manifest.json     recipe, versions, machine, seed, state, seconds
    metrics.jsonl     one line per step; nothing in it depends on the clock
    times.jsonl       seconds since the start at the end of each step, and what recording and saving took of them
    rollouts/         000012.jsonl: what was said in step 12, and how it was judged; trees/ the same of searches
    checkpoints/      000100/: the state after 100 steps, complete or absent; the model in Hugging Face format

A checkpoint is written aside, synced, given a manifest.json with the checksum of every file, and renamed into place.
On resume everything after the newest checkpoint is dropped and done again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml

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
    read_json,
    read_jsonl,
    to_json,
    verify_checkpoint,
    write_checkpoint,
)
from schoolhouse.runs.diagnostics import WINDOW, diagnose
from schoolhouse.runs.progress import progress
from schoolhouse.runs.signals import Interrupts, Stopped
from schoolhouse.types import Completion, Group, Rollout, SchoolError

Item = TypeVar("Item", bound=int | tuple[Any, ...])
Kept = TypeVar("Kept", bound=Stateful)
Json = dict[str, Any]

_SPARE = 2  # checkpoints that are kept


class Run:
    """An open run folder. Make one with `Run.open`, use it as a context manager.

    folder    where it is
    config    what was asked for
    step      the first step to do
    finished  whether nothing is left to do
    """

    def __init__(self, folder: Path, config: BaseConfig, recipe: str) -> None:
        self.folder, self.config, self.recipe = folder, config, recipe
        self.step = 0
        self._lock = open(folder / "lock", "a+")  # noqa: SIM115 (held until the run is closed)
        self._now: int | None = None  # the step whose body is running
        self._line: Json = {}  # what it has recorded so far
        self._ended = False
        self._kept = 0.0  # seconds that recording and saving took since the last step ended
        self._clock: Json = {}  # other numbers of this step that depend on the clock
        self._limit, self._tokens, self._aside = (inf, inf), 0, 0.0  # of tokens and seconds, and what was spent
        self._began, self._earlier = time.monotonic(), 0.0
        self._unsynced: set[Path] = set()
        self._recent: deque[Json] = deque(maxlen=WINDOW)  # lines of metrics.jsonl
        self._advised: set[str] = set()  # what the user has been told, and what still holds
        self._manifest: Json = {}

    # --- opening and closing

    @classmethod
    def open(cls, folder: Path | str, config: BaseConfig, recipe: str) -> Run:
        """A new run in `folder`, or the one that is there, at its newest checkpoint.

        Raises SchoolError when the folder holds something else, a run with another config, a damaged checkpoint,
        or is in use by another process.
        """
        folder = Path(folder)
        ours = {"lock", "manifest.json", "manifest.json.partial", "config.yaml.partial"}
        fresh = not (folder / "config.yaml").exists()
        if folder.exists() and not folder.is_dir():
            raise SchoolError(f"{folder} is a file; give a folder with --dir")
        if fresh and folder.exists() and {path.name for path in folder.iterdir()} - ours:
            raise SchoolError(f"{folder} is not a run folder (no config.yaml) and not empty; give another with --dir")
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config, recipe)
        try:
            lock_folder(run._lock, folder)
            if fresh or {path.name for path in folder.iterdir()} <= ours | {"config.yaml"}:  # it never took a step
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
                    self._note_state("finished" if kind is None and self._ended else "stopped")
        finally:
            self._lock.close()

    def finish(self) -> None:
        """Nothing is left to do. Leaving the `with` block after the last step says so too."""
        self._note_state("finished")

    def save_manifest(self) -> None:
        """Bring the manifest up to date: seconds and steps so far."""
        self._note_state(self._manifest["state"])

    @property
    def finished(self) -> bool:
        return self._manifest.get("state") == "finished"

    @property
    def seconds(self) -> float:
        """Wall-clock time of this session and the earlier ones."""
        return self._earlier + (0.0 if self.finished else time.monotonic() - self._began)

    def track_files(self, *files: Path | None) -> None:
        """Note the files that the run is made from. Raises SchoolError when one has changed since the run began."""
        for path in filter(None, files):
            manifest.check_unchanged(self._manifest.setdefault("files", {}), str(path), checksum(path), self.folder)
        self.save_manifest()

    def set_budget(self, tokens: float = inf, seconds: float = inf) -> None:
        """End after the step in which the policy has sampled so much, or the run has taken so long (exams aside)."""
        self._limit = (tokens, seconds)
        if bounds := {name: to for name, to in (("tokens", tokens), ("seconds", seconds)) if to != inf}:
            self._manifest["limit"] = bounds
            self.save_manifest()
        self._tokens, self._aside = manifest.budget_spent(self.folder)

    # --- the loop

    def steps(
        self, source: Iterable[Item], save: Stateful, every: int = 100, total: int | None = None
    ) -> Iterator[Item]:
        """Yield the items of `source`, each the number of a step or a tuple that begins with it, and save on schedule.

        keep   saved every `every` steps, and after the last one
        total  steps of the whole run, for the time left (otherwise `config.steps`)
        Ctrl-C or SIGTERM finishes the step, saves and raises Stopped; a second one stops at once.
        """
        total = (total or getattr(self.config, "steps", None)) if self._limit == (inf, inf) else None
        with Interrupts() as interrupts, progress(self.folder.name, total, self.step) as advance:
            for item in () if self.step and self._spent() else source:  # killed behind its last step: nothing to do
                self._now = item[0] if isinstance(item, tuple) else item
                self._line = {}
                yield item
                self._end_step()
                advance(1, manifest.headline(self._line))
                if interrupts.count or self.step % every == 0:
                    self.save_checkpoint(save)
                if self._spent():
                    break
                if interrupts.count:
                    raise Stopped(f"stopped after {self.step} steps; saved in {self.model}")
            self._now = None
            self.save_checkpoint(save)
        self._ended = True

    def _spent(self) -> bool:
        return self._tokens >= self._limit[0] or self.seconds - self._aside >= self._limit[1]

    def _end_step(self) -> None:
        assert self._now is not None
        with self._keeping():
            if self._line:
                self._append("metrics.jsonl", {"step": self._now, **self._line})
        self.step = self._now + 1
        times = {"step": self._now, "seconds": round(self.seconds, 3), "io_seconds": round(self._kept, 6)}
        self._append("times.jsonl", times | self._clock)
        self._tokens += self._line.get("sampled_tokens", 0)
        self._aside += self._clock.get("eval", 0.0)
        self._kept, self._clock = 0.0, {}
        self._recent.append(self._line)
        if self.step % WINDOW == 0:
            self._advise()

    def _advise(self) -> None:
        """Say what keeps the run from learning, once for as long as it holds."""
        found = diagnose(self._recent)
        for name in found.keys() - self._advised:
            print(f"{self.folder.name}, step {self.step}: {found[name]}", file=sys.stderr)
        self._advised = set(found)

    def record(
        self,
        step: int,
        groups: Sequence[Group] | None = None,
        parse: Callable[[Rollout], Completion] | None = None,
        **stats: Any,
    ) -> None:
        """Note what happened in a step. Everything recorded in one step stands in one line of metrics.jsonl.

        groups  what was said and how it was judged: written to rollouts/, and accounted for in the metrics
        read    gives thought and answer of a rollout as text, for the eyes of whoever reads rollouts/
        stats   numbers, or mappings of numbers; keep the clock out of them
        """
        with self._keeping():
            self._record(step, groups, parse, stats)

    def log_timing(self, **seconds: float | dict[str, float]) -> None:
        """Note numbers of this step that depend on the clock, such as what an `exam` took: they go to times.jsonl."""
        self._clock |= {name: taken for name, taken in seconds.items() if taken}

    def _record(
        self, step: int, groups: Sequence[Group] | None, read: Callable[[Rollout], Completion] | None, stats: Json
    ) -> None:
        if groups is not None:
            rollouts = rollouts_of(groups)
            verdicts = [verdict for group in groups for verdict in group.verdicts]
            replies = [read(rollout) for rollout in rollouts] if read else None
            stats = group_stats(groups, replies) | (reflection_stats(groups, replies) if replies else {}) | stats
            path = self.folder / "rollouts" / f"{step:06d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            self._unsynced |= {path, path.parent}
            with self._room_for(path), path.open("a", encoding="utf-8") as file:
                for said in zip(rollouts, verdicts, replies or [None] * len(rollouts), strict=True):
                    file.write(to_json(manifest.rollout_row(*said)) + "\n")
        if step == self._now:
            self._line |= stats
        else:
            self._append("metrics.jsonl", {"step": step, **stats})

    # --- checkpoints

    @property
    def model(self) -> Path:
        """Folder of the newest model, in Hugging Face format."""
        if not (newest := self.latest_checkpoint()):
            raise SchoolError(f"{self.folder} holds no checkpoint yet")
        return newest

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = list_checkpoints(self.folder / "checkpoints")
        return complete[-1] if complete else None

    def model_path(self, model: Path | str) -> Path:
        """Folder to load the model from: the newest checkpoint, or else `model`. Raises SchoolError where that one has
        changed by now: it may be what the run goes back to, or is held to."""
        self.track_model(model)
        return self.latest_checkpoint() or Path(model)

    def track_model(self, model: Path | str) -> None:
        """Note the weights of a model that the run needs. Raises SchoolError when they have changed since it began."""
        if not self.finished and Path(model).is_dir():
            manifest.check_unchanged(
                self._manifest.setdefault("models", {}), str(model), manifest.weights_digest(model), self.folder
            )
            self.save_manifest()

    def restore(self, state: Kept) -> Kept:
        """Give back its training state to what was loaded from `start`; nothing to do in a new run."""
        if newest := self.latest_checkpoint():
            import torch

            state.load_state_dict(torch.load(newest / "trainer.pt", map_location="cpu", weights_only=True))
        return state

    def save_checkpoint(self, state: Stateful) -> Path:
        """Save the state after `step` steps: complete or absent. Older checkpoints but one are dropped.

        Raises SchoolError when the disk is full; the newest complete checkpoint is never given up for space.
        """
        target = self.folder / "checkpoints" / f"{self.step:06d}"
        if target.exists():
            return target
        try:
            with self._keeping():
                for path in self._unsynced:
                    fsync(path)
                self._unsynced.clear()
                metrics = self.folder / "metrics.jsonl"
                size = metrics.stat().st_size if metrics.exists() else 0
                write_checkpoint(target, state, {"step": self.step, "metrics_bytes": size})
        except Exception as error:
            if not is_disk_full(error):
                raise
            if len(list_checkpoints(target.parent)) > 1:
                delete_old_checkpoints(target.parent, 1)
                return self.save_checkpoint(state)
            raise self._no_room(target, error) from error
        delete_old_checkpoints(target.parent, _SPARE)
        self._note_state("running")
        return target

    # --- creating and resuming

    def _create(self) -> None:
        self._manifest = {
            "recipe": self.recipe,
            "seed": getattr(self.config, "seed", None),
            **manifest.environment(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._note_state("running")
        with self._room_for(self.folder / "config.yaml"):
            atomic_write(self.folder / "config.yaml", dump(self.config))

    def _resume(self) -> None:
        self._manifest = read_json(self.folder / "manifest.json")
        self._refuse_other_config()
        delete_partial_checkpoints(self.folder / "checkpoints")
        saved = verify_checkpoint(newest) if (newest := self.latest_checkpoint()) else {"step": 0, "metrics_bytes": 0}
        self.step = int(saved["step"])
        drop_partial_line(self.folder / "times.jsonl")
        times = read_jsonl(self.folder / "times.jsonl")
        known = [self._manifest.get("seconds"), *(row.get("seconds") for row in times[-1:])]
        self._earlier = max([0.0, *(float(number) for number in known if isinstance(number, (int, float)))])
        if self.finished:
            return
        metrics = self.folder / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if size < saved["metrics_bytes"]:
            raise SchoolError(
                f"{metrics} has lost lines: it holds {size} bytes, {saved['metrics_bytes']} when {newest} was written; "
                "put the whole file back, or start anew in another folder with --dir"
            )
        if metrics.exists():
            os.truncate(metrics, saved["metrics_bytes"])
        for path in (self.folder / "rollouts").glob("*.jsonl"):
            if path.stem.isdigit() and int(path.stem) >= self.step:
                path.unlink()
        if told := manifest.record_resume(self._manifest, self.step):
            print(f"{self.folder.name} {told}", file=sys.stderr)
        self._note_state("running")

    def _refuse_other_config(self) -> None:
        silent = yaml.safe_load(dump(type(self.config).model_construct()))  # keys that came since the run began
        there = {"recipe": self._manifest.get("recipe"), **silent, **manifest.read_config(self.folder / "config.yaml")}
        here = {"recipe": self.recipe, **yaml.safe_load(dump(self.config))}
        if differing := manifest.differences(there, here):
            told = "give the same values to go on with it, or another folder with --dir to start anew"
            raise SchoolError("\n".join([f"{self.folder} holds a run with another config:", *differing, told]))

    # --- writing

    def _note_state(self, state: str) -> None:
        self._earlier, self._began = self.seconds, time.monotonic()
        self._manifest |= {"state": state, "step": self.step, "seconds": round(self._earlier, 3)}
        with self._room_for(self.folder / "manifest.json"):
            atomic_write(self.folder / "manifest.json", to_json(self._manifest, 2))

    def _append(self, name: str, row: Json) -> None:
        path = self.folder / name
        self._unsynced |= {path, self.folder}
        with self._room_for(path), path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    @contextmanager
    def _keeping(self) -> Generator[None]:
        """What happens inside is the price of keeping a run: times.jsonl shows it."""
        began = time.monotonic()
        yield
        self._kept += time.monotonic() - began

    @contextmanager
    def _room_for(self, path: Path) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise (self._no_room(path, error) if is_disk_full(error) else error) from None

    def _no_room(self, path: Path, error: Exception) -> SchoolError:
        newest = self.latest_checkpoint()
        kept = f"{newest} is complete" if newest else "no checkpoint had been written yet"
        return SchoolError(
            f"the disk is full: {path} could not be written ({error}).\n{kept}; free some space, and the same command "
            f"goes on from step {int(newest.name) if newest else 0}"
        )


def read_metrics(folder: Path) -> list[Json]:
    """What a run recorded, a mapping per step, in order."""
    return read_jsonl(folder / "metrics.jsonl")
