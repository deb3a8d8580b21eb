"""An adapter that gives other transformers decoders the interface of `Decoder`.

The model keeps its own layers, but uses the attention of this package. When a model is loaded, its logits are compared
with the logits of the model's own attention.

In the shapes of tensors, N is the number of tokens of a batch, S the number of sequences, V the vocabulary size, and C
the width. H is the number of query heads, K the number of key heads, and D the head width.
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
"""The largest difference between logits that can be a rounding error, if only the attention function differs."""

_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # attention arguments that an attention context does not implement


def _attention_forward(
    module: nn.Module,
    q_1HND: Tensor,
    k_1KND: Tensor,
    v_1KND: Tensor,
    mask: object,
    attention_context: AttentionContext,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls. The attention context decides which keys a query attends to."""
    for name in _UNSUPPORTED:
        if options.get(name) is not None:
            raise SchoolError(f"the attention of the model needs `{name}`, which is not implemented; use another model")
    head_dim = q_1HND.shape[-1]
    if (scale := options.get("scaling")) is not None:  # an attention context always divides by sqrt(D)
        q_1HND = q_1HND * (scale * head_dim**0.5)
    k_1KND = k_1KND.to(v_1KND.dtype)  # as in our own decoder
    qkv = (x[0].transpose(0, 1).contiguous() for x in (q_1HND, k_1KND, v_1KND))
    return attention_context.attend(int(str(module.layer_idx)), *qkv)[None], None


class HFAdapter(nn.Module):
    """A transformers model with the interface of `Decoder`.

    The model maps tokens [N] at positions [N] to hidden states [N, C].
    """

    def __init__(self, hf_model: PreTrainedModel, config: ModelConfig) -> None:
        super().__init__()
        self.hf_model, self.config = hf_model, config

    def forward(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        base_model: Any = self.hf_model.base_model
        inputs = {"input_ids": tokens_N[None], "position_ids": positions_N[None]}
        return base_model(**inputs, attention_context=context, use_cache=False).last_hidden_state[0]

    def project(self, hidden_NC: Tensor) -> Tensor:
        return self.hf_model.get_output_embeddings()(hidden_NC)

    def save(self, folder: Path) -> None:
        """Write the config and the weights in Hugging Face format."""
        self.hf_model.save_pretrained(folder)


def load_adapter(folder: Path) -> HFAdapter:
    """Load the model of a folder with any `model_type`, in float32.

    Raises SchoolError if transformers cannot load the folder completely. Also raises SchoolError if the attention of
    this package gives other logits than the model's own attention. The logits differ if the model scales or caps
    numbers in a way that the attention of this package does not implement.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained  # its annotation leaves the loading info out
    try:
        hf_model, loading_info = load(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the code of each model_type may raise anything
        raise SchoolError(f"{folder}: transformers cannot load this model ({error}); check the folder") from error
    if problems := {name: sorted(map(str, keys))[:4] for name, keys in loading_info.items() if keys}:
        raise SchoolError(f"{folder}: the weights do not fit config.json ({problems}); copy the folder again")
    # There is no mask function with this name, so transformers creates no mask.
    AttentionInterface.register("schoolhouse", _attention_forward)
    name = f"{folder}: model_type `{hf_model.config.model_type}`"
    try:
        adapter, difference = _compare(hf_model.eval())
    except Exception as error:  # as above
        raise SchoolError(
            f"{name} does not work with the attention of this package ({type(error).__name__}: {error})"
        ) from error
    if not difference <= LOGIT_TOLERANCE:
        raise SchoolError(
            f"{name} is not supported: with the attention of this package, its logits differ by {difference:.2g} (more "
            f"than a rounding error of {LOGIT_TOLERANCE:g}) from the logits of its own attention; use another model"
        )
    return adapter


@torch.no_grad()
def _compare(hf_model: PreTrainedModel) -> tuple[HFAdapter, float]:
    """Create the adapter, and compute the largest difference between its logits and the model's own logits.

    The logits of the adapter are computed twice: in a packed batch, and by decoding with slots. Two sequences of 16
    tokens are used, so that attention between sequences is detected. The output of the head is multiplied by 64,
    because a soft cap is nearly linear for small logits, and the logits of an untrained model are small.
    """
    magnify = 64.0
    hook = hf_model.get_output_embeddings().register_forward_hook(lambda head, x, logits: logits * magnify)
    tokens_ST = (torch.arange(1, 33) * 7919 % hf_model.config.get_text_config().vocab_size).view(2, 16)
    own_STV = hf_model(tokens_ST, use_cache=False).logits
    hf_model.set_attn_implementation("schoolhouse")

    prompts, whole = PackedAttention([8, 8], keep_kv=True), PackedAttention([16, 16])
    adapter = HFAdapter(hf_model, _model_config(hf_model, num_layers=1, num_kv_heads=1, head_dim=1))
    adapter(tokens_ST[:, :8].flatten(), prompts.positions, prompts)
    kept_kv = prompts.kept_kv
    if not kept_kv:
        raise SchoolError("the model never calls an attention function; use another model")
    num_layers, (_, num_kv_heads, _, head_dim) = len(kept_kv), kept_kv[0][0].shape
    adapter.config = _model_config(hf_model, num_layers, num_kv_heads, head_dim)
    packed_STV = adapter.project(adapter(tokens_ST.flatten(), whole.positions, whole)).view_as(own_STV)

    cache = SlotKVCache(num_layers, 2, num_kv_heads, head_dim, prompt_capacity=8, capacity=8)
    cache.store_prompts(prompts, [0, 1])
    cache.admit([0, 1])
    differences = [packed_STV - own_STV]
    for t in range(8, 16):
        logits_SV = adapter.project(adapter(tokens_ST[:, t], cache.begin_step(), cache))
        cache.end_step()
        differences.append(logits_SV - own_STV[:, t])
    hook.remove()
    return adapter, max(float(difference.abs().max()) for difference in differences) / magnify


def _model_config(hf_model: PreTrainedModel, num_layers: int, num_kv_heads: int, head_dim: int) -> ModelConfig:
    """Return the model sizes that the sampler and the learner need.

    The number of layers, the number of heads and the head width come from the keys that the attention received.
    """
    config: Any = hf_model.config.get_text_config()
    # above these lengths, a model attends to fewer keys, or rotates its queries with another frequency
    limits = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    if "longrope" in str(getattr(config, "rope_parameters", "")):
        limits.append(getattr(config, "original_max_position_embeddings", None))
    return ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 4 * config.hidden_size),
        num_hidden_layers=num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        model_type=hf_model.config.model_type,
        sliding_window=min((limit for limit in limits if limit), default=None),
    )
