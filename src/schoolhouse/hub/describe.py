"""`school doctor MODEL`: prints what was recognised in a model folder, what is missing, and the needed memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_template import DEFAULT_TEMPLATE
from schoolhouse.hub.memory import MemoryNeed, memory_need
from schoolhouse.model.config import ARCHITECTURES, ModelConfig, unknown_keys, unsupported_keys
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.folder import read_json, weight_paths
from schoolhouse.model.lora import Adapter
from schoolhouse.model.lora_folder import load_conversation, load_model
from schoolhouse.policy.policy import Policy
from schoolhouse.runs.adapter_folder import base_folder
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.memory import machine_memory
from schoolhouse.types import Message, SchoolError


class Token(NamedTuple):
    """A token: the id of the token, and its text in the vocabulary."""

    id: int
    text: str


class Weights(NamedTuple):
    """The weights according to the headers of their files: number of parameters, bytes, and number types."""

    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]


class Template(NamedTuple):
    """How a model's chat template writes a conversation.

    `source`: where the chat template was found.
    `thought`: how the model marks a thought.
    `stops`: the tokens that end an answer.
    `bos`: the token that begins a text, or None if the tokenizer has no BOS token.
    `adds_bos`: whether a prompt begins with the BOS token.
    """

    source: str
    thought: str
    stops: tuple[Token, ...]
    bos: Token | None
    adds_bos: bool


@dataclass(frozen=True)
class ModelDescription:
    """The facts that were recognised in a model folder. The value None means that a fact could not be read.

    `decoder`: the text "own" or "adapter", or an empty text if the model cannot be loaded.
    `decoder_reason`: the reason why this decoder is used.
    `length_reason`: the reason why a sequence cannot be longer.
    `adapter`: the rank, the layers and the base model of a LoRA adapter, or an empty text for a whole model.
    `limits`: the features that do not work with the model.
    `problems`: the reasons why the model cannot be used. The list is empty for a model that can be used.
    """

    folder: Path
    model_type: str = "unknown"
    weights: Weights | None = None
    config: ModelConfig | None = None
    decoder: str = ""
    decoder_reason: str = ""
    length_reason: str = ""
    adapter: str = ""
    template: Template | None = None
    memory: MemoryNeed | None = None
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def describe_model(name: Path | str) -> ModelDescription:
    """Load a model in the same way as every other command, and describe the model. A model that is too large for the
    memory is not loaded.

    Raises SchoolError if the model does not exist.
    """
    try:
        folder = resolve_model(name)
        base = base_folder(folder)
        config = read_json(base / "config.json")
    except SchoolError as error:
        if not Path(name).exists():
            raise
        return ModelDescription(Path(name), problems=(str(error),))
    model_type = str(config.get("model_type", "unknown"))
    try:
        weights = _read_weights(base)
    except SchoolError as error:
        return ModelDescription(folder, model_type, problems=(str(error),))
    problems, decoder, template, memory, adapter = [], None, None, None, ""
    needed, free = weights.num_bytes + 4 * weights.num_parameters, machine_memory()[0]
    if needed > free:
        problems.append(
            f"loading the model takes {_size(needed)} of memory, and {_size(free)} are free: use a smaller model, or a "
            "machine with more memory"
        )
    else:
        try:
            decoder = load_model(folder)
            adapter = _describe_adapter(decoder.lora)
        except SchoolError as error:
            problems.append(str(error))
    try:
        conversation = load_conversation(folder)
        template = _describe_template(folder, conversation)
        if decoder is not None:
            memory = memory_need(Policy(decoder, conversation))
    except SchoolError as error:
        problems.append(str(error))
    described = ModelDescription(
        folder, model_type, weights, template=template, memory=memory, problems=tuple(problems)
    )
    if decoder is None:
        return described
    own = isinstance(decoder, Decoder)
    return replace(
        described,
        config=decoder.config,
        decoder="own" if own else "adapter",
        decoder_reason=_decoder_reason(config, own),
        adapter=adapter,
        length_reason=_length_reason(config, decoder.config),
        limits=tuple(_limits(own, decoder.config)),
    )


def _describe_adapter(adapter: Adapter | None) -> str:
    if adapter is None:
        return ""
    layers = ", ".join(sorted({name.rpartition(".")[2] for name in adapter.modules}))
    return f"rank {adapter.rank}, alpha {adapter.alpha:g}, {len(adapter.modules)} layers ({layers}) of {adapter.base}"


def _limits(own: bool, config: ModelConfig) -> Iterator[str]:
    if not own:
        yield "GGUF export needs the own decoder"
    if not config.plain_attention:
        yield "the fast kernels compute only plain attention, but a layer has a window, a soft cap or attention sinks"


def _decoder_reason(config: Mapping[str, object], own: bool) -> str:
    unsupported, unknown = unsupported_keys(config), unknown_keys(config)
    if own and unknown:
        return f"a small test model with {_list(unknown)} of this config.json gave the same logits as transformers"
    if own:
        return "this decoder supports all keys of config.json"
    if str(config.get("model_type")) not in ARCHITECTURES:
        return f"the own decoder computes {', '.join(ARCHITECTURES)}, not `{config.get('model_type')}`"
    if unsupported:
        return f"the own decoder does not compute {_list(unsupported)}"
    return f"{_list(unknown)} in config.json changed the logits, or the own decoder has weights with other names"


def _list(keys: list[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more keys" if len(keys) > most else ""
    return ", ".join(f"`{key}`" for key in keys[:most]) + more


_LENGTH_REASONS = {  # key of config.json: why a longer sequence is not computed exactly
    "sliding_window": "its layers attend to {} tokens (`sliding_window`); only shorter windows are computed",
    "attention_chunk_size": "its layers attend within {} tokens (`attention_chunk_size`)",
    "original_max_position_embeddings": "its rotary frequencies change above {} tokens (longrope)",
}


def _length_reason(hf_config: Mapping[str, Any], config: ModelConfig) -> str:
    if config.max_seq_len == config.max_position_embeddings:
        return "`max_position_embeddings`"
    for key, reason in _LENGTH_REASONS.items():
        if config.max_seq_len in _values(hf_config, key):
            return reason.format(f"{config.max_seq_len:,}")
    return f"a window of the model, below `max_position_embeddings` ({config.max_position_embeddings:,})"


def _values(value: object, key: str) -> Iterator[object]:
    """Yield the values of a key in nested mappings."""
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from _values(inner, key)


# --- weights


def _read_weights(folder: Path) -> Weights:
    """Read the headers of the weight files. Raises SchoolError if a file is damaged or if no weight file exists."""
    files = weight_paths(folder)
    tensors = [tensor for path in files for tensor in _headers(path)]
    num_parameters = sum(prod(shape) for shape, _ in tensors)
    return Weights(
        num_parameters, sum(path.stat().st_size for path in files), tuple(sorted({dtype for _, dtype in tensors}))
    )


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _headers(path: Path) -> Iterator[tuple[list[int], str]]:
    """Yield the shape and the number type of each tensor in a file, without reading the values of the tensors."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(name)
                    yield part.get_shape(), _DTYPES.get(part.get_dtype(), part.get_dtype())
        except SafetensorError as error:
            raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error
        return
    try:
        tensors = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # the unpickler raises what a damaged file leads to
        raise SchoolError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again") from error
    for tensor in tensors.values():
        yield list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


# --- tokenizer and template


def _describe_template(folder: Path, conversation: Conversation) -> Template:
    tokenizer, thought = conversation.tokenizer, conversation.thought_format
    if thought.start_id is None or thought.end_id is None:
        marks = f"`{thought.start.strip()}` and `{thought.end.strip()}` as text: the tokenizer has no tokens for them"
    else:
        start, end = (f"`{tokenizer.id_to_token(i)}` (id {i})" for i in (thought.start_id, thought.end_id))
        marks = f"{start} and {end}"
    marks += "" if thought.own else "; the model shows no marks of its own"
    marks += "; the prompt opens the thought" if thought.opened_by_prompt else ""
    text = tokenizer.special_token("bos_token")
    bos_id = tokenizer.vocab.get(text) if text else None
    try:
        prompt = conversation.prompt((Message("user", "?"),))
    except SchoolError:
        prompt = ()
    return Template(
        _template_source(folder, conversation),
        marks,
        tuple(Token(i, tokenizer.id_to_token(i)) for i in conversation.stop_ids),
        None if bos_id is None or text is None else Token(bos_id, text),
        prompt[:1] == (bos_id,),
    )


def _template_source(folder: Path, conversation: Conversation) -> str:
    template = conversation.tokenizer.chat_template
    if template is None:
        return (
            f"none; the default template is used ({'ChatML' if conversation.template == DEFAULT_TEMPLATE else 'plain'})"
        )
    for path in sorted(folder.rglob("*.jinja")):
        if path.read_text(encoding="utf-8", errors="replace") == template:
            return str(path.relative_to(folder))
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.is_file() and template in _texts(read_json(path).get("chat_template")):
            return name
    return "the folder"


def _texts(template: object) -> list[str]:
    """Return the templates in a JSON file, which holds one template or a list of named templates."""
    if isinstance(template, list):
        return [entry.get("template", "") for entry in template if isinstance(entry, dict)]
    return [template] if isinstance(template, str) else []


# --- printing


def render(d: ModelDescription) -> str:
    """Write the description in words, with one topic on each line."""
    lines = [("folder", str(d.folder)), ("family", _family(d))]
    if d.decoder:
        which = "schoolhouse's own" if d.decoder == "own" else "the layers of transformers with our attention (adapter)"
        lines.append(("decoder", f"{which}: {d.decoder_reason}"))
    if d.adapter:
        lines.append(("LoRA adapter", d.adapter))
    if d.config:
        lines.append(("longest sequence", f"{d.config.max_seq_len:,} tokens: {d.length_reason}"))
        tied = "shares its weights with the embedding" if d.config.tie_word_embeddings else "has weights of its own"
        lines.append(("head", tied))
    if d.weights:
        lines.append(("numbers", f"{', '.join(d.weights.dtypes)} in the files; loaded and saved in float32"))
    if d.template:
        lines.append(("chat template", d.template.source))
        lines.append(("thoughts", d.template.thought))
        lines.append(("an answer ends at", ", ".join(f"`{text}` (id {i})" for i, text in d.template.stops)))
        bos = d.template.bos
        use = "begins" if d.template.adds_bos else "does not begin"
        lines.append(("BOS", f"`{bos.text}` (id {bos.id}); a prompt {use} with it" if bos else "none"))
    lines += [("not supported", limit) for limit in d.limits]
    if d.memory:
        lines += d.memory.lines()
    lines += [("CANNOT BE USED", problem) for problem in d.problems] or [("can be used", "yes")]
    return "\n".join(f"{topic:18} {text}" for topic, text in lines)


def _family(d: ModelDescription) -> str:
    parts = [d.model_type]
    if d.weights:
        parts.append(f"{d.weights.num_parameters / 1e6:,.1f} million parameters in {_size(d.weights.num_bytes)}")
    if d.config:
        parts.append(f"{d.config.num_hidden_layers} layers, width {d.config.hidden_size}")
        parts.append(f"vocabulary {d.config.vocab_size:,}")
    return ", ".join(parts)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
