"""Any other transformers decoder behind our seam: their layers, our attention; checked against itself at load.

N tokens of a batch, S sequences, V vocabulary, C width, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schoolhouse.model.decoder import AttentionContext, ModelConfig
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_TOLERANCE = 1e-4
"""Largest difference between a logit of the model's own forward and of ours that still counts as rounding."""

_NOT_OURS = ("softcap", "s_aux", "position_bias")  # what some models ask of attention and memory.attend does not do


def _attend(
    module: nn.Module,
    q_1HND: Tensor,
    k_1KND: Tensor,
    v_1KND: Tensor,
    mask: object,
    memory: AttentionContext,
    **wishes: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention. Which keys a query may see is the memory's business."""
    for name in _NOT_OURS:
        if wishes.get(name) is not None:
            raise SchoolError(f"its attention needs `{name}`, which our attention does not have")
    width = q_1HND.shape[-1]
    if (scale := wishes.get("scaling")) is not None:  # the memory divides by sqrt(D) in any case
        q_1HND = q_1HND * (scale * width**0.5)
    k_1KND = k_1KND.to(v_1KND.dtype)  # as in our own decoder
    seen_NHD = memory.attend(
        int(str(module.layer_idx)), *(x[0].transpose(0, 1).contiguous() for x in (q_1HND, k_1KND, v_1KND))
    )
    return seen_NHD[None], None


class HFAdapter(nn.Module):
    """A transformers model with the seam of `Decoder`: tokens [N] at positions [N] to hidden states [N, C]."""

    def __init__(self, inner: PreTrainedModel, shape: ModelConfig) -> None:
        super().__init__()
        self.inner, self.config = inner, shape

    def forward(self, tokens_N: Tensor, positions_N: Tensor, memory: AttentionContext) -> Tensor:
        stem: Any = self.inner.base_model
        told = stem(input_ids=tokens_N[None], position_ids=positions_N[None], memory=memory, use_cache=False)
        return told.last_hidden_state[0]

    def project(self, hidden_NC: Tensor) -> Tensor:
        return self.inner.get_output_embeddings()(hidden_NC)

    def save(self, folder: Path) -> None:
        """Write config and weights in Hugging Face format."""
        self.inner.save_pretrained(folder)


def load_adapter(folder: Path) -> HFAdapter:
    """The model of a folder, whatever its family, in float32.

    Raises SchoolError for a folder that transformers cannot read whole, and for a model that does not give the same
    logits with our attention as with its own (it scales or caps something behind our back).
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained  # its annotation leaves the report out
    try:
        inner, report = load(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # their code for this family, whatever it raises
        raise SchoolError(f"{folder}: transformers cannot load this model ({error})") from error
    if wrong := {what: sorted(map(str, keys))[:4] for what, keys in report.items() if keys}:
        raise SchoolError(f"{folder}: weights do not fit config.json ({wrong}): copy the folder again")
    # No mask function is registered under this name: transformers then makes no mask at all.
    AttentionInterface.register("schoolhouse", _attend)
    name = f"{folder}: model_type `{inner.config.model_type}`"
    try:
        adapter, apart = _compare(inner.eval())
    except Exception as error:  # the same
        raise SchoolError(f"{name} does not work with our attention ({type(error).__name__}: {error})") from error
    if not apart <= LOGIT_TOLERANCE:
        raise SchoolError(
            f"{name} gives logits with our attention that differ by {apart:.2g} from its own (at most {LOGIT_TOLERANCE:g} "
            "is rounding): it scales, caps or hides something that we would silently leave out"
        )
    return adapter


@torch.no_grad()
def _compare(inner: PreTrainedModel) -> tuple[HFAdapter, float]:
    """The adapter, and how far its logits lie from the model's own: packed, and token by token through slots.

    Two sequences of 16 tokens, so that one seeing the other is found. The head's output is magnified while comparing:
    a soft cap on logits is next to linear while they are small, as those of an untrained model are.
    """
    magnify = 64.0
    hook = inner.get_output_embeddings().register_forward_hook(lambda head, x, logits: logits * magnify)
    tokens_ST = (torch.arange(1, 33) * 7919 % inner.config.get_text_config().vocab_size).view(2, 16)
    own_STV = inner(tokens_ST, use_cache=False).logits
    inner.set_attn_implementation("schoolhouse")

    prompts, whole = PackedAttention([8, 8], keep_kv=True), PackedAttention([16, 16])
    adapter = HFAdapter(inner, _shape(inner, keys=(1, 1, 1)))
    adapter(tokens_ST[:, :8].flatten(), prompts.positions, prompts)
    kept = prompts.kept_kv
    if not kept:
        raise SchoolError("it never asks for attention")
    adapter.config = _shape(inner, keys=(len(kept), kept[0][0].shape[1], kept[0][0].shape[3]))
    packed_STV = adapter.project(adapter(tokens_ST.flatten(), whole.positions, whole)).view_as(own_STV)

    heads, width = adapter.config.num_key_value_heads, adapter.config.head_dim
    slots = SlotKVCache(len(kept), 2, heads, width, prompt_capacity=8, capacity=8)
    slots.store_prompts(prompts, [0, 1])
    slots.admit([0, 1])
    apart = [packed_STV - own_STV]
    for t in range(8, 16):
        logits_SV = adapter.project(adapter(tokens_ST[:, t], slots.begin_step(), slots))
        slots.end_step()
        apart.append(logits_SV - own_STV[:, t])
    hook.remove()
    return adapter, max(float(each.abs().max()) for each in apart) / magnify


def _shape(inner: PreTrainedModel, keys: tuple[int, int, int]) -> ModelConfig:
    """What sampler and learner need to know; `keys` are layers, heads and width of the keys that attention got."""
    config: Any = inner.config.get_text_config()
    # behind these lengths a model looks at less, or turns its queries at another speed
    bounds = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    if "longrope" in str(getattr(config, "rope_parameters", "")):
        bounds.append(getattr(config, "original_max_position_embeddings", None))
    layers, heads, width = keys
    return ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 4 * config.hidden_size),
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=heads,
        head_dim=width,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        model_type=inner.config.model_type,
        sliding_window=min((bound for bound in bounds if bound), default=None),
    )
