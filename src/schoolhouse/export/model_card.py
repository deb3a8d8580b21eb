"""Write the model card of an exported model. The card describes the model's origin, its training and its evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from schoolhouse import __version__
from schoolhouse.runs.adapter_folder import base_folder
from schoolhouse.runs.atomic_io import read_json, read_jsonl, resolve_model
from schoolhouse.runs.manifest import read_config

Json = dict[str, Any]

_MODEL_KEYS = ("model", "generator", "start_model")
"""The config keys whose values are models. The model card shows these models in its list of training steps."""
_MAX_HISTORY = 20


def model_name(model: Path) -> str:
    """Return the name of a model: the folder name of its run, or else the name of its own folder."""
    folder = model.resolve()
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def render_model_card(model: Path, format: str, licence: str) -> str:
    """Make the text of a model card: a description of the model, each step of its training, and its evaluation."""
    config = read_json(base_folder(resolve_model(model)) / "config.json")
    name = model_name(model)
    metadata = {
        "license": licence,
        "library_name": "transformers" if format == "hf" else "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["schoolhouse", "reasoning"],
    }
    front_matter = "".join(f"{key}: {json.dumps(value)}\n" for key, value in metadata.items())
    size = ", ".join(
        f"{label} {config[key]}"
        for label, key in (
            ("layers", "num_hidden_layers"),
            ("hidden size", "hidden_size"),
            ("vocabulary", "vocab_size"),
            ("context", "max_position_embeddings"),
        )
        if key in config
    )
    lines = [
        f"# {name}",
        "",
        f"A {config.get('model_type', 'language')} model ({size}), trained with schoolhouse {__version__}.",
        "",
        "## Training",
        "",
    ]
    for number, (folder, settings, manifest) in enumerate(training_history(model), 1):
        shown = {key: without_paths(value) for key, value in settings.items() if key not in _MODEL_KEYS}
        lines += [f"{number}. **{manifest.get('recipe', 'a model from elsewhere')}** ({folder})", ""]
        if shown:
            lines += ["   ```yaml", *(f"   {key}: {json.dumps(value)}" for key, value in shown.items()), "   ```", ""]
    lines += ["## Evaluation", "", *evaluation_lines(model), "", "## Licence", "", f"{licence}, of these weights."]
    lines += ["", "## Use", "", *_USES[format].replace("NAME", name).splitlines()]
    return f"---\n{front_matter}---\n\n" + "\n".join(lines) + "\n"


_USES = {
    "hf": "`school chat NAME`, `school serve NAME`, or `transformers.pipeline('text-generation', 'NAME')`.",
    "gguf": "`llama-cli -m NAME.gguf`",
    "int8": "`llama-cli -m NAME.gguf`",
}


_PATH = re.compile(r"(?<![^\s:=,;])~?/[^\s:?,;]+")
"""A pattern for an absolute path, alone or after the name of a task."""


def without_paths(value: Any) -> Any:
    """Prepare a config value for publication: each absolute path in the value is cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return _PATH.sub(lambda path: Path(path[0]).name, value) if isinstance(value, str) else value


def training_history(model: Path) -> list[tuple[str, Json, Json]]:
    """List the runs that a model comes from, in the order of training.

    Each item has the name of the run's folder, its config and its manifest.
    """
    history: list[tuple[str, Json, Json]] = []
    folder: Path | None = model.resolve()
    while folder is not None and len(history) < _MAX_HISTORY:
        run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
        if not (run / "manifest.json").is_file() or not (run / "config.yaml").is_file():
            if history or not folder.is_dir():
                break
            return [(folder.name, {}, {})]
        settings = read_config(run / "config.yaml")
        history.insert(0, (run.name, settings, read_json(run / "manifest.json")))
        parent = settings.get("model")
        folder = Path(parent).resolve() if isinstance(parent, str) and parent and Path(parent).is_dir() else None
    return history


def evaluation_lines(model: Path) -> list[str]:
    """Return the evaluation section of the model card.

    The section shows the evaluation after training, or else the last evaluation during training.
    """
    folder = model.resolve()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if run == folder and (run / "evaluation.json").is_file():
        return _table(read_json(run / "evaluation.json"))
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "eval" in row]
    if run != folder:  # a checkpoint is named after its steps, an evaluation after the steps before it
        rows = [row for row in rows if row["step"] <= int(folder.name)]
    return _table(rows[-1]["eval"]) if rows else ["Not evaluated here."]


def _table(evaluation: Json) -> list[str]:
    task, problems = without_paths(evaluation.get("task", "")), evaluation.get("problems", "?")
    metrics = {key: value for key, value in evaluation.get("overall", {}).items() if isinstance(value, int | float)}
    lines = [f"Task `{task}`, {problems} held-out problems.", "", "| | |", "|---|---|"]
    return lines + [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
