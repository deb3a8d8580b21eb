"""What a run writes down: a rollout as a line of JSON, the machine it ran on, and how two configs differ."""

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
from schoolhouse.runs.atomic_io import checksum, read_jsonl, resolve_model
from schoolhouse.types import Completion, Rollout, SchoolError, Verdict


def rollout_row(rollout: Rollout, verdict: Verdict, completion: Completion | None) -> dict[str, Any]:
    """A rollout as a line of JSON. `logprob` has one number per written token, exact in float32."""
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
        "logprob": [float(f"{p:.9g}") for p, w in zip(rollout.logprob, rollout.loss_mask, strict=True) if w],
    }


def _spans(written: Sequence[bool]) -> list[list[int]]:
    """Where the policy spoke: [start, end) of each stretch."""
    edges = [i for i in range(len(written) + 1) if (i and written[i - 1]) != (i < len(written) and written[i])]
    return [[start, end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on besides its config."""
    flags: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
    import torch

    told = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
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
        "processor": sorted(flags.intersection(told)),
    }


@cache
def source_digest() -> str:
    """A digest of our own sources: a schoolhouse that somebody changed is another one, whatever its version."""
    home = Path(schoolhouse.__file__).parent
    sources = sorted(path for path in home.rglob("*") if path.suffix in (".py", ".c", ".h"))
    told = hashlib.blake2b(digest_size=8)
    for path in sources:
        told.update(f"{path.relative_to(home).as_posix()}\n".encode() + path.read_bytes())
    return told.hexdigest()


ENVIRONMENT_KEYS = ("versions", "code", "python", "platform", "cores", "gpu", "threads", "processor")
"""What a manifest tells of the machine and the programs. A run repeats bit for bit where they are the same."""


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each in which two manifests differ, as far as both tell it, and for each time that one went on under
    others than it began with."""
    both = [name for name in ENVIRONMENT_KEYS if name in old and name in new]
    lines = differences({name: old[name] for name in both}, {name: new[name] for name in both})
    for manifest in (old, new):
        for later in manifest.get("resumed_with", ()):
            lines += [f"  from step {later['step']} on:", *environment_changes({**manifest, "resumed_with": ()}, later)]
    return lines


def record_resume(manifest: dict[str, Any], step: int) -> str:
    """What has changed since a run was last begun, in words ("" for nothing), and a note of it in its manifest.

    On another machine, or with other programs, it goes on, but not to the bit as it would have.
    """
    here = environment()
    last = [{**manifest, "resumed_with": ()}, *manifest.get("resumed_with", ())][-1]
    if not (changed := environment_changes(last, here)):
        return ""
    manifest.setdefault("resumed_with", []).append({"step": step, **here})
    return "\n".join([f"goes on from step {step}; since then changed:", *changed, "so it may not end in the same bits"])


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for every value, however deep, in which two configs differ."""
    before, after = _flatten(old), _flatten(new)
    return [
        f"  {key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    inner = [pair for key, each in items for pair in _flatten(each, f"{place}.{key}" if place else str(key)).items()]
    return dict(inner) if inner else {place: value}


def flatten_numbers(line: Mapping[str, Any], place: str = "") -> dict[str, float]:
    """The numbers of a line of metrics, those inside by dotted names."""
    found: dict[str, float] = {}
    for key, value in line.items():
        name = f"{place}.{key}" if place else key
        if isinstance(value, Mapping):
            found |= flatten_numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def peak_memory_bytes(who: int = resource.RUSAGE_SELF) -> int:
    """Largest resident size so far: of this process, or with RUSAGE_CHILDREN of its largest child that has ended."""
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def budget_spent(folder: Path) -> tuple[int, float]:
    """Tokens that a run has sampled to learn from, and the seconds that its exams took."""
    tokens = sum(line.get("sampled_tokens", 0) for line in read_jsonl(folder / "metrics.jsonl"))
    return tokens, sum(row.get("eval", 0.0) for row in read_jsonl(folder / "times.jsonl"))


def headline(line: dict[str, Any]) -> str:
    """The numbers of a step that stand beside the bar."""
    shown = [name for name in ("reward", "loss", "bits_per_byte") if isinstance(line.get(name), (int, float))]
    return "  ".join(f"{name} {line[name]:.3f}" for name in shown)


def read_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run. Raises SchoolError where it is damaged."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise SchoolError(f"{path} is damaged ({error}); put the whole file back") from None


# --- what a run is made from


def weights_digest(model: Path | str) -> str:
    """Checksums of the weights of a model's folder, or of a run's newest checkpoint."""
    return " ".join(checksum(path) for path in sorted(resolve_model(model).glob("*.safetensors")))


def check_unchanged(known: dict[str, str], name: str, now: str, run: Path) -> None:
    """Note a checksum under a name. Raises SchoolError where another one was noted when the run began."""
    if known.setdefault(name, now) != now:
        raise SchoolError(
            f"{name} has changed since {run} began: its steps would be others than the ones done. Put the old one "
            "back (of a run the newest checkpoint counts), or start anew in another folder with --dir"
        )
