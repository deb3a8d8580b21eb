"""Data in a run folder: rollouts as JSON lines, the environment of the run, and the differences between configs."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import schoolhouse
from schoolhouse import __version__
from schoolhouse.config import BaseConfig, dump
from schoolhouse.runs.atomic_io import checksum, read_json, read_jsonl, resolve_model
from schoolhouse.runs.progress import phased
from schoolhouse.types import Completion, Rollout, SchoolError, Verdict

FORMAT = 1
"""The number of the run folder's format, which is written in manifest.json. A folder with another format number cannot
be opened."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest.json of a run. Raises SchoolError if the file is damaged or has another format."""
    manifest = read_json(path)
    if (found := manifest.get("format")) != FORMAT:
        raise SchoolError(
            f"{path} has {'no format' if found is None else f'format {found}'}, but this version of schoolhouse reads "
            f"format {FORMAT}: start a new run in another folder with --dir, or use the version that wrote this file"
        )
    return manifest


def rollout_row(rollout: Rollout, verdict: Verdict, completion: Completion | None) -> dict[str, Any]:
    """Convert a rollout to a JSON line.

    The key `logprob` has one float32 number, without rounding, per sampled token.
    """
    return {
        "problem": rollout.problem.id,
        "family": rollout.problem.family,
        "question": rollout.problem.messages[-1].content if rollout.problem.messages else "",
        "sample": rollout.key.sample,
        "reward": verdict.reward,
        "reason": verdict.reason,
        "reward_parts": verdict.parts,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        **({"thought": completion.thought, "answer": completion.answer} if completion else {}),
        "tokens": rollout.tokens,
        "sampled_spans": _spans(rollout.loss_mask),
        "logprob": [float(f"{p:.9g}") for p, m in zip(rollout.logprob, rollout.loss_mask, strict=True) if m],
    }


def _spans(mask: Sequence[bool]) -> list[list[int]]:
    """List the position ranges [start, end) of sampled tokens. Each range contains only sampled tokens."""
    edges = [i for i in range(len(mask) + 1) if (i and mask[i - 1]) != (i < len(mask) and mask[i])]
    return [[start, end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def recorded_mask(row: Mapping[str, Any]) -> list[bool]:
    """Return the loss mask of a rollout that `rollout_row` recorded: for each token, whether the policy sampled it."""
    mask = [False] * len(row["tokens"])
    for start, end in row["sampled_spans"]:
        mask[start:end] = [True] * (end - start)
    return mask


_CPU_FEATURES = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def environment() -> dict[str, Any]:
    """Describe the environment: package versions, a digest (checksum) of the source code, and the machine.

    The numbers of a run can depend on its environment, not only on its config.
    """
    import torch

    return {
        "versions": {
            "schoolhouse": __version__,
            **{name: _version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        },
        "code": source_digest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "processor": sorted(processor_flags() & set(_CPU_FEATURES)),
    }


@cache
def processor_flags() -> frozenset[str]:
    """Return the names of the processor's instruction sets, as Linux names them. On other systems the set is empty."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split())
    return frozenset()


@cache
def source_digest() -> str:
    """A digest (checksum) of this package's source files.

    If a file changes, its digest changes, even if the version is the same.
    """
    home = Path(schoolhouse.__file__).parent
    sources = sorted(path for path in home.rglob("*") if path.suffix in (".py", ".c", ".h"))
    digest = hashlib.blake2b(digest_size=8)
    for path in sources:
        digest.update(f"{path.relative_to(home).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


ENVIRONMENT_KEYS = ("versions", "code", "python", "platform", "cores", "gpu", "threads", "processor")
"""The keys of a manifest that describe the environment. If two runs have the same config and the same values of these
keys, they give the same bits."""


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each difference between the environments of two manifests.

    If one of the two runs was resumed in another environment, the result also has one line for each change.
    """
    both = [name for name in ENVIRONMENT_KEYS if name in old and name in new]
    lines = differences({name: old[name] for name in both}, {name: new[name] for name in both})
    for manifest in (old, new):
        for later in manifest.get("resumed_with", ()):
            lines += [f"  from step {later['step']} on:", *environment_changes({**manifest, "resumed_with": ()}, later)]
    return lines


def record_resume(manifest: dict[str, Any], step: int) -> str:
    """Record in a manifest that a run continues in another environment. Returns a message for the user.

    The returned message is empty if the environment has not changed. A run can continue in another environment, but its
    results may then differ in some bits from the results of a run that was never stopped.
    """
    now = environment()
    last = [{**manifest, "resumed_with": ()}, *manifest.get("resumed_with", ())][-1]
    if not (changed := environment_changes(last, now)):
        return ""
    manifest.setdefault("resumed_with", []).append({"step": step, **now})
    lines = [f"resumes from step {step} in a changed environment:", *changed, "its results may differ in their bits"]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line `  key: old -> new` for every value, at any depth, that differs between two mappings."""
    before, after = _flatten(old), _flatten(new)
    return [
        f"  {key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Convert nested values to a flat mapping with dotted keys, such as `a.b`."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    inner = [pair for key, each in items for pair in _flatten(each, f"{prefix}.{key}" if prefix else str(key)).items()]
    return dict(inner) if inner else {prefix: value}


def flatten_numbers(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in a line of metrics. Nested numbers get dotted keys, such as `a.b`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found |= flatten_numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def peak_memory_bytes(process: int = resource.RUSAGE_SELF) -> int:
    """The peak resident memory of this process so far, in bytes.

    With RUSAGE_CHILDREN, the result is the peak memory of the largest child process that has ended.
    """
    peak = resource.getrusage(process).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def budget_spent(folder: Path) -> tuple[int, float]:
    """Return the number of tokens that a run has sampled for training, and the time of its evaluations in seconds."""
    tokens = sum(line.get("sampled_tokens", 0) for line in read_jsonl(folder / "metrics.jsonl"))
    return tokens, sum(row.get("eval", 0.0) for row in read_jsonl(folder / "times.jsonl"))


def headline(line: dict[str, Any]) -> str:
    """Return the numbers of a step that are shown next to the progress bar."""
    shown = [name for name in ("reward", "loss", "bits_per_byte") if isinstance(line.get(name), (int, float))]
    return "  ".join(f"{name} {line[name]:.3f}" for name in shown)


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a run. Raises SchoolError if the file is damaged."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise SchoolError(f"the file {path} is damaged ({error}); restore the whole file") from None


def check_same_config(folder: Path, old_recipe: str | None, recipe: str, config: BaseConfig) -> None:
    """Raise SchoolError if the config of a run folder differs from the given config.

    The error message lists every key whose value differs.
    """
    defaults = yaml.safe_load(dump(type(config).model_construct()))  # for keys that were added since the run began
    old = {"recipe": old_recipe, **defaults, **read_config(folder / "config.yaml")}
    new = {"recipe": recipe, **yaml.safe_load(dump(config))}
    if changed := differences(old, new):
        found = f"{folder} contains a run with another config (value in the run -> value that you gave):"
        remedy = "give the same values to resume this run, or start a new run in another folder with --dir"
        raise SchoolError("\n".join([found, *changed, remedy]))


# --- inputs of a run


@phased("reading the weights for their checksum")
def weights_digest(model: Path | str) -> str:
    """Compute the checksums of the weights in a model folder, or in the newest checkpoint of a run."""
    return " ".join(checksum(path) for path in weight_files(model))


def weight_files(model: Path | str) -> list[Path]:
    """Find the files with the weights in a model folder, or in the newest checkpoint of a run."""
    folder = resolve_model(model)
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("[ap]*_model*.bin"))  # adapter_ or pytorch_


def check_unchanged(known: dict[str, str], name: str, digest: str, run: Path) -> None:
    """Record a checksum with a name. Raises SchoolError if the checksum has changed since the run began."""
    if known.setdefault(name, digest) != digest:
        raise SchoolError(
            f"{name} has changed since the run {run} began, so the next steps would not match the finished steps: "
            "restore the old version (in the folder of a run, restore the newest checkpoint), or start a new run in "
            "another folder with --dir"
        )
