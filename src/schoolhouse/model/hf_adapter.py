"""An adapter that gives other decoder models of the library transformers the interface of `Decoder`.

The model keeps its own layers, but uses the attention of this package. When a model is loaded, its logits are compared
with the logits of the model's own attention.

In the shapes of tensors, N is the number of tokens of a batch, S the number of sequences, V the vocabulary size, and C
the width. H is the number of query heads, K the number of key heads, and D the head width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schoolhouse.model.config import ModelConfig
from schoolhouse.model.decoder import AttentionContext
from schoolhouse.model.folder import read_json
from schoolhouse.model.kv_cache import AttentionRule, Bfloat16SlotKVCache, PackedAttention, SlotKVCache
from schoolhouse.model.lora import Adapter
from schoolhouse.model.output_head import Float32Head
from schoolhouse.model.parity import LOGIT_TOLERANCE, logit_difference, magnified, probe_tokens
from schoolhouse.model.prompt_chunks import PromptChunk
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONG_WINDOW = 2048
"""A sliding window of this size or more limits the length of sequences: only plain attention has fast kernels."""

_PROBE_WINDOW = 4
"""The size of sliding windows while logits are compared. The sequences of the comparison are longer."""

_RULED_CONTEXTS = (PackedAttention, PromptChunk, SlotKVCache, Bfloat16SlotKVCache)
"""The attention contexts that support the attention rules of a model, such as a sliding window."""

_STATEFUL = re.compile("(Mamba|Conv1d|ShortConv|SSM|Recurrent|GatedDelta|LinearAttention|LightningAttention|Rwkv|LSTM)")
"""The class names of layers that carry a state from one token to the next."""


class _ForwardPass:
    """The attention context of one forward pass, and the number of the current layer.

    transformers calls the attention function once for each layer, in the order of the layers.
    """

    def __init__(self, context: AttentionContext) -> None:
        self.context, self.layer = context, 0
        self.rules: list[AttentionRule] = []

    def attend(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: AttentionRule | None) -> Tensor:
        layer, self.layer = self.layer, self.layer + 1
        if rule is None:
            return self.context.attend(layer, q_NHD, k_NKD, v_NKD)
        self.rules.append(rule)
        if type(self.context) not in _RULED_CONTEXTS:
            raise ValueError(f"{type(self.context).__name__} computes plain attention only")
        context: Any = self.context
        return context.attend_by_rule(layer, q_NHD, k_NKD, v_NKD, rule)


_current_pass: ContextVar[_ForwardPass] = ContextVar("_current_pass")
"""The current forward pass. Some models do not pass extra arguments to their attention function."""


def _attention_forward(
    module: nn.Module, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, mask: object = None, **options: Any
) -> tuple[Tensor, None]:
    """transformers calls this attention function. The attention context decides which keys a query attends to."""
    if options.get("position_bias") is not None:
        raise SchoolError("its attention has a bias for positions, which ours does not have; use another model")
    key_dim, value_dim = q_1HND.shape[-1], v_1KND.shape[-1]
    head_dim = max(key_dim, value_dim)
    scale = options.get("scaling")
    # An attention context divides by sqrt(D), and all its heads have the same width.
    q_1HND = q_1HND * ((key_dim**-0.5 if scale is None else scale) * head_dim**0.5)
    k_1KND = k_1KND.to(v_1KND.dtype)  # as in our own decoder
    q, k, v = (F.pad(x, (0, head_dim - x.shape[-1]))[0].transpose(0, 1).contiguous() for x in (q_1HND, k_1KND, v_1KND))
    return _current_pass.get().attend(q, k, v, _rule(options))[None, ..., :value_dim], None


def _rule(options: Mapping[str, Any]) -> AttentionRule | None:
    """Return the attention rule of a layer, or None if the layer has plain causal attention."""
    window, softcap, sinks = (options.get(name) for name in ("sliding_window", "softcap", "s_aux"))
    window = window if window is not None and window < _LONG_WINDOW else None
    return None if window is softcap is sinks is None else AttentionRule(window, softcap, sinks)


class _BaseOutput:
    """The output of a base model. The output contains only hidden states."""

    def __init__(self, hidden_1NC: Tensor) -> None:
        self.last_hidden_state = hidden_1NC

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _GivenHidden(nn.Module):
    """A replacement for a base model. The replacement returns the hidden states that were passed as `inputs_embeds`."""

    @property
    def decoder(self) -> nn.Module:
        """The output head of the model OPT calls `decoder`, a part of the base model of OPT."""
        return self

    def forward(self, *args: object, inputs_embeds: Tensor, **options: object) -> _BaseOutput:
        return _BaseOutput(inputs_embeds)


class HFAdapter(nn.Module):
    """A transformers model with the interface of `Decoder`.

    The model maps tokens [N] at positions [N] to hidden states [N, C].

    activation_checkpointing  keep only the input of each block, and compute the block again in the backward pass
    """

    def __init__(self, hf_model: PreTrainedModel, config: ModelConfig) -> None:
        super().__init__()
        self.hf_model, self.config = hf_model, config
        self.activation_checkpointing = False
        self.hf_config: Mapping[str, object] = {}  # the config.json that this model was loaded from
        self.lora: Adapter | None = None  # the adapter that was added to the linear layers

    def forward(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        return self.run(tokens_N, positions_N, context)[0]

    def run(
        self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext
    ) -> tuple[Tensor, list[AttentionRule]]:
        """Compute the hidden states [N, C]. Also return the attention rules of the layers that do not have plain causal
        attention."""
        base_model: Any = self.hf_model.base_model
        this_pass = _ForwardPass(context)
        token = _current_pass.set(this_pass)
        recomputes = self.activation_checkpointing and torch.is_grad_enabled()
        try:
            with _checkpointed(base_model) if recomputes else nullcontext():
                output = base_model(input_ids=tokens_N[None], position_ids=positions_N[None], use_cache=False)
        finally:
            _current_pass.reset(token)
        return output.last_hidden_state[0], this_pass.rules

    def project(self, hidden_NC: Tensor) -> Tensor:
        """Compute float32 logits [N, V] with the model's own code, because some models scale or cap their logits."""
        head: Any = copy.copy(self.hf_model)
        head._modules = {**self.hf_model._modules, self.hf_model.base_model_prefix: _GivenHidden()}
        for name, module in self.hf_model.named_children():
            if module is self.hf_model.get_output_embeddings():
                head._modules[name] = Float32Head(module)
        return head(inputs_embeds=hidden_NC[None], use_cache=False).logits[0].float()

    def save(self, folder: Path) -> dict[str, object]:
        """Write the weights in Hugging Face format, and return the contents of config.json."""
        self.hf_model.save_pretrained(folder)
        return {**self.hf_config, **read_json(folder / "config.json")}


@contextmanager
def _checkpointed(base_model: nn.Module) -> Generator[None]:
    """Compute each block of a model with activation checkpointing, inside a `with` block.

    transformers has its own activation checkpointing, but only for models in training mode, which have dropout. Also,
    the backward pass of a block needs the attention context and the layer number of this block. Raises SchoolError if
    the model has no blocks that transformers can compute again.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[Any] = [module for module in base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise SchoolError(
            f"`activation_checkpointing` does not work for {type(base_model).__name__}, because transformers does not "
            "say which layers are its blocks: set `activation_checkpointing` to false, and lower `microbatch_tokens`"
        )
    for block in blocks:
        block.forward = partial(_forward_twice, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # restore the method of the class


def _forward_twice(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Compute a block, and compute the block again in the backward pass."""
    this_pass = _current_pass.get()
    first_layer = this_pass.layer

    def compute(*args: Any, **options: Any) -> Any:
        this_pass.layer = first_layer
        token = _current_pass.set(this_pass)  # the backward pass of a GPU runs in another thread
        try:
            return forward(*args, **options)
        finally:
            _current_pass.reset(token)

    return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=False, **options)


def load_adapter(folder: Path) -> HFAdapter:
    """Load the model of a folder with any `model_type`, in float32.

    Raises SchoolError if transformers cannot load the folder completely. Also raises SchoolError if the logits with our
    attention differ from the logits with the model's own attention: the model then needs a part that our attention
    does not implement.
    """
    from transformers import AttentionInterface

    hf_model = _load_hf_model(folder)
    # There is no mask function with this name, so transformers creates no mask.
    AttentionInterface.register("schoolhouse", _attention_forward)
    name = f"{folder}: model_type `{hf_model.config.model_type}`"
    if layers := _stateful_layers(hf_model):
        raise SchoolError(
            f"{name} is not supported: its layers `{layers}` carry a state from token to token, and our cache holds "
            "keys and values only; use a model whose layers are all attention"
        )
    try:
        adapter, difference = _compare(hf_model)
    except SchoolError as error:
        raise SchoolError(f"{name} is not supported: {error}") from error
    except Exception as error:  # the code of each model_type may raise anything
        raise SchoolError(f"{name} does not work with our attention ({type(error).__name__}: {error})") from error
    if not difference <= LOGIT_TOLERANCE:
        raise SchoolError(
            f"{name} is not supported: with our attention its logits differ by {difference:.2g} from those with its "
            f"own attention (at most {LOGIT_TOLERANCE:g} is rounding), so its attention does something that ours does "
            "not; use another model"
        )
    adapter.hf_config = read_json(folder / "config.json")
    return adapter


def _load_hf_model(folder: Path) -> PreTrainedModel:
    """Load the model in float32 with its own attention. Python code from the folder is never run."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    load: Any = AutoModelForCausalLM.from_pretrained  # its annotation leaves the loading info out
    config = read_json(folder / "config.json")
    logging.disable_progress_bar()
    try:
        hf_model, loading_info = load(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # the code of each model_type may raise anything
        kind = config.get("model_type")
        if "trust_remote_code" in str(error):
            reason = f"model_type `{kind}` needs Python code from the folder, and code from a model folder is never run"
            raise SchoolError(f"{folder}: {reason}; use a model type that the library transformers supports") from error
        if "model type" in str(error) or "model identifier" in str(error):
            reason = f"the installed transformers has no model_type `{kind}`"
            raise SchoolError(f"{folder}: {reason}; upgrade transformers, or use another model") from error
        raise SchoolError(f"{folder}: transformers cannot load this model ({error})") from error
    if problems := {name: sorted(map(str, keys))[:4] for name, keys in loading_info.items() if keys}:
        raise SchoolError(f"{folder}: weights do not fit config.json ({problems}): copy the folder again")
    return hf_model.eval()


def _stateful_layers(hf_model: nn.Module) -> str:
    """Return the class names of layers that carry a state from one token to the next, or an empty text."""
    names = {type(module).__name__ for module in hf_model.modules() if _STATEFUL.search(type(module).__name__)}
    return ", ".join(sorted(name for name in names if not name.endswith(("CausalLM", "Model", "Norm", "NormGated"))))


def _compare(hf_model: PreTrainedModel) -> tuple[HFAdapter, float]:
    """Create the adapter, and compute the largest difference between its logits and the model's own logits.

    If the logits are equal only without sliding windows, sequences must not be longer than the window.
    """
    config: Any = hf_model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None and window < _LONG_WINDOW:
        with _windows_of(hf_model, _PROBE_WINDOW):
            adapter, difference = _compare_once(hf_model)
        if difference <= LOGIT_TOLERANCE:
            return adapter, difference
    adapter, difference = _compare_once(hf_model)
    adapter.config = replace(adapter.config, sliding_window=_length_limit(hf_model, window))
    return adapter, difference


@contextmanager
def _windows_of(hf_model: PreTrainedModel, size: int) -> Generator[None]:
    """Set all sliding windows of a model to the given size, inside a `with` block."""
    config = hf_model.config.get_text_config()
    holders: list[Any] = [
        x for x in (config, *hf_model.modules()) if isinstance(getattr(x, "sliding_window", None), int)
    ]
    before = [holder.sliding_window for holder in holders]
    try:
        for holder in holders:
            holder.sliding_window = size
        yield
    finally:
        for holder, window in zip(holders, before, strict=True):
            holder.sliding_window = window


@torch.no_grad()
def _compare_once(hf_model: PreTrainedModel) -> tuple[HFAdapter, float]:
    tokens_ST = probe_tokens(hf_model.config.get_text_config().vocab_size)
    with magnified(hf_model.get_output_embeddings()):
        hf_model.set_attn_implementation("eager")
        try:
            expected_STV = hf_model(tokens_ST, use_cache=False).logits
        except Exception as error:
            raise SchoolError(f"transformers itself cannot compute its logits ({error}); check config.json") from error
        hf_model.set_attn_implementation("schoolhouse")
        adapter = HFAdapter(hf_model, _model_config(hf_model))
        packed = PackedAttention([tokens_ST.shape[1]] * 2, keep_kv=True)
        rules = adapter.run(tokens_ST.flatten(), packed.positions, packed)[1]
        if not packed.kept_kv:
            raise SchoolError("it computes attention in its own code, which cannot use our cache; use another model")
        shapes = {(k.shape[1], k.shape[3]) for k, _ in packed.kept_kv}
        if len(shapes) > 1:
            raise SchoolError(
                f"its layers have different numbers or widths of key heads ({sorted(shapes)}); use another model"
            )
        num_kv_heads, head_dim = shapes.pop()
        adapter.config = replace(
            adapter.config,
            num_hidden_layers=len(packed.kept_kv),
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            plain_attention=not rules,
        )
        return adapter, logit_difference(adapter, expected_STV, tokens_ST)


def _length_limit(hf_model: PreTrainedModel, window: int | None = None) -> int | None:
    """Return the longest sequence that the adapter computes exactly, or None if there is no limit.

    For longer sequences, the model attends to fewer keys, or uses other rotary frequencies.
    """
    config: Any = hf_model.config.get_text_config()
    limits = [window, getattr(config, "attention_chunk_size", None)]
    if (long_window := getattr(config, "sliding_window", None)) is not None and long_window >= _LONG_WINDOW:
        limits.append(long_window)
    rope = getattr(config, "rope_parameters", None) or {}
    if "longrope" in str(rope):
        limits += [getattr(config, "original_max_position_embeddings", None)]
        limits += [rope.get("original_max_position_embeddings")]
    return min((limit for limit in limits if limit), default=None)


def _model_config(hf_model: PreTrainedModel) -> ModelConfig:
    """Return the model sizes that the sampler and the learner need, with one layer and one key head as temporary
    values."""
    config: Any = hf_model.config.get_text_config()
    return ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=1,
        head_dim=1,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        model_type=hf_model.config.model_type,
        sliding_window=_length_limit(hf_model),
    )
