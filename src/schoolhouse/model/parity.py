"""Compare the logits of two implementations with the same weights: the implementation of this package and the one of
transformers.

The shapes use these letters: S sequences, T tokens of the longest sequence, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from schoolhouse.model.config import ModelConfig, parse_model_config
from schoolhouse.model.decoder import AttentionContext, Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache


class LanguageModel(Protocol):
    """The common interface of `Decoder` and `HFAdapter`."""

    config: ModelConfig

    def __call__(self, tokens_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor: ...

    def project(self, hidden_NC: Tensor) -> Tensor: ...


LOGIT_TOLERANCE = 1e-4
"""A larger difference between logits with our attention and with the model's own attention is not a rounding error."""

_MAGNIFY = 64.0
_PROMPT, _LENGTH = 8, 16  # tokens of each test sequence: to read as a prompt, and in all


def probe_tokens(vocab_size: int) -> Tensor:
    """Return two sequences [2, T] of token ids. Two sequences are enough to detect attention between sequences."""
    return (torch.arange(1, 2 * _LENGTH + 1) * 7919 % vocab_size).view(2, _LENGTH)


@contextmanager
def magnified(head: nn.Module) -> Generator[None]:
    """Magnify the logits inside a `with` block, because a soft cap is nearly linear for small logits and would not be
    noticed."""
    hook = head.register_forward_hook(lambda module, inputs, logits: logits * _MAGNIFY)
    try:
        yield
    finally:
        hook.remove()


def logit_difference(decoder: LanguageModel, expected_STV: Tensor, tokens_ST: Tensor) -> float:
    """Return the largest difference between the logits of the decoder and the expected logits.

    The logits of the decoder are computed twice: in a packed batch, and token by token with a cache. Call this function
    inside the block `with magnified(...)`. The result is divided by the magnification.
    """
    config = decoder.config
    whole = PackedAttention([_LENGTH, _LENGTH])
    packed_STV = decoder.project(decoder(tokens_ST.flatten(), whole.positions, whole)).view_as(expected_STV)
    differences = [packed_STV - expected_STV]

    prompts = PackedAttention([_PROMPT, _PROMPT], keep_kv=True)
    decoder(tokens_ST[:, :_PROMPT].flatten(), prompts.positions, prompts)
    cache = SlotKVCache(
        config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim, _PROMPT, capacity=_LENGTH - _PROMPT
    )
    cache.store_prompts(prompts, [0, 1])
    cache.admit([0, 1])
    for t in range(_PROMPT, _LENGTH):
        logits_SV = decoder.project(decoder(tokens_ST[:, t], cache.begin_step(), cache))
        cache.end_step()
        differences.append(logits_SV - expected_STV[:, t])
    return max(float(difference.abs().max()) for difference in differences) / _MAGNIFY


@torch.no_grad()
def decoder_computes(hf_config: dict[str, Any]) -> bool:
    """Return whether `Decoder` gives the same logits as transformers for a config.json with unknown keys.

    The comparison uses a small model with the same config: at most four layers, random weights and a small vocabulary.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = min(4, int(hf_config["num_hidden_layers"]))
    small = {**copy.deepcopy(hf_config), "num_hidden_layers": layers, "vocab_size": 64, "pad_token_id": None}
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = small["layer_types"][:layers]
    decoder = Decoder(parse_model_config(small))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(**small)  # changes the mappings in `small`
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    weights = model.state_dict()
    if weights.keys() - {"lm_head.weight"} != decoder.state_dict().keys() - {"lm_head.weight"}:
        return False
    decoder.load_state_dict(weights)
    tokens_ST = probe_tokens(64)
    with magnified(model.get_output_embeddings()):
        expected_STV = model(tokens_ST, use_cache=False).logits
    with magnified(decoder.lm_head):
        return logit_difference(decoder, expected_STV, tokens_ST) <= LOGIT_TOLERANCE
