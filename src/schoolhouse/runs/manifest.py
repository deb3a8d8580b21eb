"""The records of a run folder: rollouts as lines of JSON, the environment, and the differences of two configs."""

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
from schoolhouse.types import Completion, Rollout, SchoolError, Verdict

FORMAT = 1
"""Number of the run folder's format, in manifest.json. A folder of another format is refused."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest.json of a run. Raises SchoolError if the file is damaged or has another format."""
    manifest = read_json(path)
    if (found := manifest.get("format")) != FORMAT:
        raise SchoolError(
            f"{path} has {'no format' if found is None else f'format {found}'}, but this version of schoolhouse reads "
            f"format {FORMAT}: start anew with another --dir, or use the version that made it"
        )
    return manifest


def rollout_row(rollout: Rollout, verdict: Verdict, completion: Completion | None) -> dict[str, Any]:
    """A rollout as a line of JSON. `logprob` has one number for each sampled token, and is exact in float32."""
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
    """[start, end) of each continuous range of sampled tokens."""
    edges = [i for i in range(len(mask) + 1) if (i and mask[i - 1]) != (i < len(mask) and mask[i])]
    return [[start, end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


_CPU_FEATURES = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def environment() -> dict[str, Any]:
    """Versions, source code and machine. The numbers of a run can depend on them, not only on the config."""
    flags: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
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
        "processor": sorted(flags.intersection(_CPU_FEATURES)),
    }


@cache
def source_digest() -> str:
    """A digest of this package's source files. If a file changes, the digest changes, even with the same version."""
    home = Path(schoolhouse.__file__).parent
    sources = sorted(path for path in home.rglob("*") if path.suffix in (".py", ".c", ".h"))
    digest = hashlib.blake2b(digest_size=8)
    for path in sources:
        digest.update(f"{path.relative_to(home).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


ENVIRONMENT_KEYS = ("versions", "code", "python", "platform", "cores", "gpu", "threads", "processor")
"""Keys of a manifest that describe the environment. If they are equal, a repeated run gives the same bits."""


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each difference between the environments of two manifests.

    If one of the two runs was resumed in another environment than its first one, there are lines for this resume too.
    """
    both = [name for name in ENVIRONMENT_KEYS if name in old and name in new]
    lines = differences({name: old[name] for name in both}, {name: new[name] for name in both})
    for manifest in (old, new):
        for later in manifest.get("resumed_with", ()):
            lines += [f"  from step {later['step']} on:", *environment_changes({**manifest, "resumed_with": ()}, later)]
    return lines


def record_resume(manifest: dict[str, Any], step: int) -> str:
    """Record in a manifest that a run resumes in another environment. Return a message ("" in the same environment).

    A run can continue in another environment. But its results may differ in their bits from a run without a stop.
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
    """A line `  key: old -> new` for every value, at any depth, that differs between two mappings."""
    before, after = _flatten(old), _flatten(new)
    return [
        f"  {key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as a flat mapping with dotted keys."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    inner = [pair for key, each in items for pair in _flatten(each, f"{prefix}.{key}" if prefix else str(key)).items()]
    return dict(inner) if inner else {prefix: value}


def flatten_numbers(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a line of metrics. Nested numbers have dotted keys."""
    found: dict[str, float] = {}
    for key, value in line.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found |= flatten_numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def peak_memory_bytes(process: int = resource.RUSAGE_SELF) -> int:
    """Largest resident size so far of this process. With RUSAGE_CHILDREN: that of its largest child that has ended."""
    peak = resource.getrusage(process).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def budget_spent(folder: Path) -> tuple[int, float]:
    """The number of tokens that a run has sampled for training, and the duration of its evaluations in seconds."""
    tokens = sum(line.get("sampled_tokens", 0) for line in read_jsonl(folder / "metrics.jsonl"))
    return tokens, sum(row.get("eval", 0.0) for row in read_jsonl(folder / "times.jsonl"))


def headline(line: dict[str, Any]) -> str:
    """The numbers of a step that are shown next to the progress bar."""
    shown = [name for name in ("reward", "loss", "bits_per_byte") if isinstance(line.get(name), (int, float))]
    return "  ".join(f"{name} {line[name]:.3f}" for name in shown)


def read_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run. Raises SchoolError if it is damaged."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise SchoolError(f"{path} is damaged ({error}); restore the whole file") from None


def check_same_config(folder: Path, old_recipe: str | None, recipe: str, config: BaseConfig) -> None:
    """Raises SchoolError if the config of a run folder differs from this config. The error names all these keys."""
    defaults = yaml.safe_load(dump(type(config).model_construct()))  # for keys that were added since the run began
    old = {"recipe": old_recipe, **defaults, **read_config(folder / "config.yaml")}
    new = {"recipe": recipe, **yaml.safe_load(dump(config))}
    if changed := differences(old, new):
        remedy = "give the same values to resume it, or another --dir to start anew"
        raise SchoolError("\n".join([f"{folder} holds a run with another config:", *changed, remedy]))


# --- inputs of a run


def weights_digest(model: Path | str) -> str:
    """Checksums of the weights in a model folder, or in a run's newest checkpoint."""
    return " ".join(checksum(path) for path in weight_files(model))


def weight_files(model: Path | str) -> list[Path]:
    """The files with the weights of a model folder, or of a run's newest checkpoint."""
    folder = resolve_model(model)
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def check_unchanged(known: dict[str, str], name: str, digest: str, run: Path) -> None:
    """Record a checksum under a name. Raises SchoolError if a different checksum was recorded when the run began."""
    if known.setdefault(name, digest) != digest:
        raise SchoolError(
            f"{name} has changed since {run} began, so the next steps would not match the finished ones: restore the "
            "old version (for a run: its newest checkpoint), or start anew with another --dir"
        )
