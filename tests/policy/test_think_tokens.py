"""`--add_think_tokens`: a model without marks of thought gets them as tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schoolhouse.algorithms.settings import Lora
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.model.decoder import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem, SchoolError
from template_zoo import write_model

CHAT = ChatConfig(add_think_tokens=True)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
)


@pytest.fixture(params=[(0, True), (0, False), (8, False)], ids=["tied", "untied", "with rows to spare"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A model whose tokenizer has no marks of thought."""
    spare, tied = request.param
    conversation = Conversation.load(write_model(tmp_path / "files", TEMPLATE))
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size + spare, tie_word_embeddings=tied)
    Policy.create(config, conversation, precision="float32").save(tmp_path / "model")
    return tmp_path / "model"


def test_the_marks_become_tokens_with_mean_rows(folder: Path) -> None:
    before, after = Policy.load(folder), Policy.load(folder, chat=CHAT)
    size = before.conversation.tokenizer.vocab_size
    style = after.conversation.thought_format
    assert (style.start_id, style.end_id) == (size, size + 1)
    assert after.decoder.config.vocab_size == max(before.decoder.config.vocab_size, size + 2)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = (policy.decoder.state_dict()[name] for policy in (before, after))
        torch.testing.assert_close(new[:size], old[:size])
        torch.testing.assert_close(new[size], old[:size].mean(0))


def test_a_saved_model_has_them_and_gets_no_more(folder: Path, tmp_path: Path) -> None:
    first = Policy.load(folder, chat=CHAT)
    first.save(tmp_path / "saved")
    again = Policy.load(tmp_path / "saved", chat=CHAT)
    assert again.conversation.tokenizer.vocab == first.conversation.tokenizer.vocab
    prompt = first.conversation.prompt_rollout(Problem("p", (Message("user", "two plus three"),), ""), Key(0, "test"))
    assert again.extend([prompt], 8)[0].tokens == first.extend([prompt], 8)[0].tokens


def test_a_policy_goes_back_to_the_weights_it_was_loaded_with(folder: Path) -> None:
    policy = Policy.load(folder, chat=CHAT)
    first = {name: tensor.clone() for name, tensor in policy.decoder.state_dict().items()}
    with torch.no_grad():
        for weight in policy.decoder.parameters():
            weight.add_(1.0)
    policy.reset(folder)
    for name, tensor in policy.decoder.state_dict().items():
        assert torch.equal(tensor, first[name])


def test_an_adapter_grows_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    conversation = Conversation.load(write_model(tmp_path, TEMPLATE))
    size = conversation.tokenizer.vocab_size
    config = transformers.GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = Policy.load(tmp_path, chat=CHAT)
    assert policy.decoder.config.vocab_size == size + 2
    prompt = policy.conversation.prompt_rollout(Problem("p", (Message("user", "two plus three"),), ""), Key(0, "test"))
    assert len(policy.extend([prompt], 4)[0]) > len(prompt)


def test_a_frozen_embedding_gets_no_tokens(folder: Path) -> None:
    with pytest.raises(SchoolError, match="which is frozen under a LoRA adapter"):
        Policy.load(folder, chat=CHAT, lora=Lora(rank=2))
    Policy.load(folder, chat=CHAT).save(folder.with_name("with tokens"))
    assert Policy.load(folder.with_name("with tokens"), chat=CHAT, lora=Lora(rank=2)).decoder.lora is not None
