"""The card of an exported model: where it comes from, how it was trained, how it was evaluated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from schoolhouse import __version__
from schoolhouse.runs.atomic_io import read_json, read_jsonl, resolve_model
from schoolhouse.runs.manifest import read_config

Json = dict[str, Any]


def name_of(model: Path) -> str:
    """What a model is called: the folder of its run, or its own."""
    folder = model.resolve()
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def card(model: Path, format: str, licence: str) -> str:
    """A model card: what the model is, how it came to be, step by step, and how good it was found to be."""
    config = read_json(resolve_model(model) / "config.json")
    name, lines = name_of(model), []
    front_matter = {
        "license": licence,
        "library_name": "transformers" if format == "hf" else "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["schoolhouse", "reasoning"],
    }
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in front_matter.items())
    shape = ", ".join(
        f"{label} {config[key]}"
        for label, key in (
            ("layers", "num_hidden_layers"),
            ("width", "hidden_size"),
            ("vocabulary", "vocab_size"),
            ("reads tokens", "max_position_embeddings"),
        )
        if key in config
    )
    lines += [
        f"# {name}",
        "",
        f"A {config.get('model_type', 'language')} model ({shape}), made with schoolhouse {__version__}.",
    ]
    lines += ["", "## How it came to be", ""]
    for at, (place, settings, manifest) in enumerate(ancestry(model)):
        kept = {key: _public(value) for key, value in settings.items() if key not in ("model", "generator", "start")}
        lines += [f"{at + 1}. **{manifest.get('recipe', 'a model from elsewhere')}** ({place})", ""]
        lines += (
            ["   ```yaml", *(f"   {key}: {json.dumps(value)}" for key, value in kept.items()), "   ```", ""]
            if kept
            else []
        )
    lines += ["## Evaluation", "", *evaluation(model), "", "## Licence", "", f"{licence}, of these weights."]
    lines += ["", "## Use", "", *_USES[format].replace("NAME", name).splitlines()]
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"


_USES = {
    "hf": "`school chat NAME`, `school serve NAME`, or `transformers.pipeline('text-generation', 'NAME')`.",
    "gguf": "`llama-cli -m NAME.gguf`",
    "int8": "`llama-cli -m NAME.gguf`",
}


_PATH = re.compile(r"(?<![^\s:=,;])~?/[^\s:?,;]+")
"""An absolute path: alone, or behind the name of a task."""


def _public(value: Any) -> Any:
    """A value of a config for everybody's eyes: of a path on this machine its last part, wherever it stands."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return _PATH.sub(lambda found: Path(found[0]).name, value) if isinstance(value, str) else value


def ancestry(model: Path) -> list[tuple[str, Json, Json]]:
    """The runs that a model comes from, the first one first: (folder's name, config, manifest)."""
    found: list[tuple[str, Json, Json]] = []
    place: Path | None = model.resolve()
    while place is not None and len(found) < 20:
        run = place.parent.parent if place.parent.name == "checkpoints" else place
        if not (run / "manifest.json").is_file() or not (run / "config.yaml").is_file():
            if found or not place.is_dir():
                break
            return [(place.name, {}, {})]
        settings = read_config(run / "config.yaml")
        found.insert(0, (run.name, settings, read_json(run / "manifest.json")))
        parent = settings.get("model")
        place = Path(parent).resolve() if isinstance(parent, str) and parent and Path(parent).is_dir() else None
    return found


def evaluation(model: Path) -> list[str]:
    """The exam that the run sat last, or its last one in training."""
    folder = model.resolve()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if run == folder and (run / "evaluation.json").is_file():
        return _table(read_json(run / "evaluation.json"))
    metrics = run / "metrics.jsonl"
    exams = [line for line in read_jsonl(metrics) if "eval" in line]
    if run != folder:  # a checkpoint is named after the steps done, an exam after those done before it
        exams = [line for line in exams if line["step"] <= int(folder.name)]
    return _table(exams[-1]["eval"]) if exams else ["Not evaluated here."]


def _table(exam: Json) -> list[str]:
    rows = [
        f"Task `{_public(exam.get('task', ''))}`, {exam.get('problems', '?')} held-out problems.",
        "",
        "| | |",
        "|---|---|",
    ]
    numbers = {key: value for key, value in exam.get("overall", {}).items() if isinstance(value, int | float)}
    return rows + [f"| {key} | {value:.4g} |" for key, value in numbers.items()]
