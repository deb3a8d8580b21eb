"""`school export`: a model as a folder that others can use, with a card that says where it comes from.

hf    Hugging Face format: transformers, vLLM and this package open it
gguf  one file for llama.cpp, in float32
int8  the same with matrices in blocks of 32 numbers of 8 bits (Q8_0): a quarter of the size
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from schoolhouse import __version__
from schoolhouse.commands import options
from schoolhouse.config import Frozen
from schoolhouse.durable import model_in, read_lines, read_object, write_whole
from schoolhouse.records import read_config
from schoolhouse.types import SchoolError

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
BLOCK = 32  # numbers that share a scale in Q8_0
Json = dict[str, Any]


class Export(Frozen):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    to: Path
    """Folder to write; it must not hold anything yet."""
    format: Literal["hf", "gguf", "int8"] = "hf"
    licence: str = "apache-2.0"
    """Of the weights, for the card."""


def export(words: Sequence[str]) -> None:
    """school export MODEL --to DIR"""
    c = options(Export, words, "school export MODEL --to DIR [--format hf|gguf|int8]", ("model",))
    if c is None:
        return
    source = model_in(c.model)
    if not source.is_dir():
        raise SchoolError(f"{c.model} is not a folder; a model is a local folder in Hugging Face format")
    if c.to.exists() and any(c.to.iterdir() if c.to.is_dir() else [c.to]):
        raise SchoolError(f"{c.to} is there already: give a folder that is empty or new")
    c.to.mkdir(parents=True, exist_ok=True)
    if c.format == "hf":
        for path in (source / name for name in (*FILES, *(shard.name for shard in source.glob("*.safetensors*")))):
            if path.is_file():
                shutil.copyfile(path, c.to / path.name)
    else:
        write_gguf(source, c.to / f"{name_of(c.model)}.gguf", eight_bits=c.format == "int8")
    write_whole(c.to / "README.md", card(c.model, c.format, c.licence))
    for path in sorted(c.to.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path}")


def name_of(model: Path) -> str:
    """What a model is called: the folder of its run, or its own."""
    folder = model.resolve()
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


# --- the card


def card(model: Path, format: str, licence: str) -> str:
    """A model card: what the model is, how it came to be, step by step, and how good it was found to be."""
    config = read_object(model_in(model) / "config.json")
    name, lines = name_of(model), []
    told = {
        "license": licence,
        "library_name": "transformers" if format == "hf" else "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["schoolhouse", "reasoning"],
    }
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in told.items())
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
        found.insert(0, (run.name, settings, read_object(run / "manifest.json")))
        parent = settings.get("model")
        place = Path(parent).resolve() if isinstance(parent, str) and parent and Path(parent).is_dir() else None
    return found


def evaluation(model: Path) -> list[str]:
    """The exam that the run sat last, or its last one in training."""
    folder = model.resolve()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if run == folder and (run / "evaluation.json").is_file():
        return _table(read_object(run / "evaluation.json"))
    metrics = run / "metrics.jsonl"
    exams = [line for line in read_lines(metrics) if "exam" in line]
    if run != folder:  # a checkpoint is named after the steps done, an exam after those done before it
        exams = [line for line in exams if line["step"] <= int(folder.name)]
    return _table(exams[-1]["exam"]) if exams else ["Not evaluated here."]


def _table(exam: Json) -> list[str]:
    rows = [
        f"Task `{_public(exam.get('task', ''))}`, {exam.get('problems', '?')} held-out problems.",
        "",
        "| | |",
        "|---|---|",
    ]
    numbers = {key: value for key, value in exam.get("overall", {}).items() if isinstance(value, int | float)}
    return rows + [f"| {key} | {value:.4g} |" for key, value in numbers.items()]


# --- GGUF


def write_gguf(source: Path, path: Path, eight_bits: bool = False) -> None:
    """A model folder as one file for llama.cpp. Raises SchoolError for a family that it cannot write.

    Texts are cut as Qwen2's are, which is how our tokenizers cut them but for rare pieces behind an apostrophe.
    """
    try:
        import gguf
    except ImportError as error:
        raise SchoolError("GGUF needs the extra `release`: pip install 'schoolhouse[release]'") from error
    from schoolhouse.policy.checkpoint import read_json, read_weights
    from schoolhouse.text.conversation import Conversation

    config: Json = read_json(source / "config.json")
    family = str(config.get("model_type"))
    if family not in ("qwen2", "qwen3"):
        raise SchoolError(
            f"{source}: GGUF is written for qwen2 and qwen3 models, this one is {family}: export it as hf"
        )
    say = Conversation.load(source)
    writer = gguf.GGUFWriter(path, family)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer.add_name(name_of(source))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(config.get("head_dim") or width // heads)
    writer.add_value_length(config.get("head_dim") or width // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if eight_bits else gguf.LlamaFileType.ALL_F32)
    _write_vocabulary(gguf, writer, source, say)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3 if family == "qwen3" else gguf.MODEL_ARCH.QWEN2, 999)
    weights = read_weights(source)
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    for name, tensor in weights.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise SchoolError(f"{source}: GGUF has no name for `{name}`")
        array: np.ndarray = tensor.float().numpy()
        if eight_bits and array.ndim == 2 and array.shape[1] % BLOCK == 0:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(known, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(known, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(gguf: Any, writer: Any, source: Path, say: Any) -> None:
    """Ids, merges, markup and the chat template."""
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    size = int(read_object(source / "config.json")["vocab_size"])
    words = {i: word for word, i in model["model"]["vocab"].items()}
    markup = {entry["id"]: entry["content"] for entry in model["added_tokens"]}
    tokens = [markup.get(i, words.get(i, f"<|unused_{i}|>")) for i in range(size)]
    kinds = [
        gguf.TokenType.CONTROL if i in markup else gguf.TokenType.NORMAL if i in words else gguf.TokenType.UNUSED
        for i in range(size)
    ]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(say.stop_ids[0])
    writer.add_eot_token_id(say.stop_ids[0])
    writer.add_pad_token_id(say.tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(say.template)
