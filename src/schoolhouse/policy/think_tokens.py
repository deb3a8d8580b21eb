"""Adds `<think>` and `</think>` to a model that has no such tokens, and adds missing rows to its embedding.

A new row is the mean of the rows of all tokens. So a new token has an average probability at first (Hewitt 2021,
"Initializing New Word Embeddings for Pretrained Language Models").
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from schoolhouse.algorithms.settings import Lora
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.tokenizer import END_THINK, THINK
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.lora_folder import load_conversation, load_model
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter


def load_with_think_tokens(
    folder: Path | str, chat: ChatConfig | None = None, lora: Lora | None = None, seed: int = 0
) -> tuple[Decoder | HFAdapter, Conversation]:
    """Load the decoder and the conversation of a model folder. If `chat` asks for the two tokens, add them.

    The arguments are those of `load_model` and `load_conversation`, and so are the errors.
    """
    decoder, conversation = load_model(folder, lora, seed), load_conversation(folder, chat)
    if conversation.chat.add_think_tokens:
        conversation = add_think_tokens(decoder, conversation)
    return decoder, conversation


def add_think_tokens(decoder: Decoder | HFAdapter, conversation: Conversation) -> Conversation:
    """Return the conversation with a tokenizer that has `<think>` and `</think>`. The decoder is changed in place.

    If the tokenizer already has both tokens, nothing changes.
    """
    tokenizer = conversation.tokenizer.with_tokens((THINK, END_THINK))
    new_ids = sorted(set(tokenizer.vocab.values()) - set(conversation.tokenizer.vocab.values()))
    if not new_ids:
        return conversation
    if decoder.lora is not None:
        raise SchoolError(
            "`add_think_tokens` changes the embedding, which is frozen under a LoRA adapter: set add_think_tokens to "
            "false, or first train a whole model with these tokens (lora.rank 0) and set `model` to it"
        )
    rows = decoder.config.vocab_size
    old_ids = torch.tensor(sorted(token for token in conversation.tokenizer.vocab.values() if token < rows))
    if tokenizer.vocab_size > rows:
        _grow(decoder, tokenizer.vocab_size)
    with torch.no_grad():
        for weight in _vocabulary_weights(decoder):
            weight[new_ids] = weight[old_ids].mean(0)
    return Conversation(tokenizer, conversation.template, conversation.chat, conversation.generation_config)


def _vocabulary_weights(decoder: Decoder | HFAdapter) -> list[Tensor]:
    """Return the weights [V, C] of embedding and head.

    If embedding and head share one weight, the list contains only the shared weight.
    """
    if isinstance(decoder, Decoder):
        weights = (decoder.model.embed_tokens.weight, decoder.lm_head.weight)
    else:
        model: Any = decoder.hf_model
        weights = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return list(weights[: 1 if weights[0] is weights[1] else 2])


def _grow(decoder: Decoder | HFAdapter, vocab_size: int) -> None:
    """Add rows to the embedding and to the head, until each has `vocab_size` rows. Each number in a new row is 0."""
    if isinstance(decoder, Decoder):
        tied = decoder.lm_head.weight is decoder.model.embed_tokens.weight
        for layer in (decoder.model.embed_tokens, decoder.lm_head):
            rows = layer.weight.new_zeros(vocab_size, layer.weight.shape[1])
            rows[: len(layer.weight)] = layer.weight.detach()
            layer.weight = nn.Parameter(rows)
        decoder.model.embed_tokens.num_embeddings = decoder.lm_head.out_features = vocab_size
        if tied:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
    else:
        model: Any = decoder.hf_model
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    decoder.config = replace(decoder.config, vocab_size=vocab_size)
