"""The chat template in requests: its arguments, and the bos token of texts."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import processors

from schoolhouse.data.chat import Conversation
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.serve.api_schema import ChatCompletionRequest, CompletionRequest, InvalidRequest
from schoolhouse.serve.batch_engine import BatchEngine, PendingRequest
from schoolhouse.serve.prompts import PromptEncoder, chat_prompt, completion_prompts
from schoolhouse.serve.responses import conversation_of, pending_chat
from template_zoo import write_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ '' if enable_thinking else '<think></think>' }}{% endif %}"
)


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    return Conversation.load(write_model(tmp_path, TEMPLATE))


def chat_request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "two"}], **fields)


@contextmanager
def serving(conversation: Conversation) -> Generator[tuple[BatchEngine, PromptEncoder]]:
    """An engine with a tiny model that has this template, and the thread for long prompts."""
    config = ModelConfig(conversation.tokenizer.vocab_size, 16, 16, 1, 1, 1, 16, 128)
    policy = Policy.create(config, conversation, precision="float32")
    engine, encoder = BatchEngine(lambda: policy), PromptEncoder(4, 10)
    try:
        yield engine, encoder
    finally:
        engine.close()
        encoder.close()


def first_chat(conversation: Conversation, body: ChatCompletionRequest) -> PendingRequest:
    async def make() -> PendingRequest:
        chosen = conversation_of(conversation, body)
        prompt = await chat_prompt(engine, chosen, body, encoder)
        return pending_chat(engine, chosen, body, prompt, 0, 0)[0]

    with serving(conversation) as (engine, encoder):
        return asyncio.run(make())


def test_a_request_gives_arguments_to_the_template(conversation: Conversation) -> None:
    decode = conversation.tokenizer.decode
    assert decode(first_chat(conversation, chat_request()).rollout.tokens).endswith("assistant:<think></think>")
    pending = first_chat(conversation, chat_request(chat_template_kwargs={"enable_thinking": True}))
    assert decode(pending.rollout.tokens).endswith("assistant:")
    assert pending.conversation is not conversation


@pytest.mark.parametrize("arguments", [{"messages": 1}, {"date": "today"}])
def test_arguments_that_the_template_refuses_are_named(conversation: Conversation, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="`chat_template_kwargs`: "):
        first_chat(conversation, chat_request(chat_template_kwargs=arguments))


def test_a_text_begins_with_the_bos_token_of_the_tokenizer(conversation: Conversation, tmp_path: Path) -> None:
    inner = Inner.from_file(str(tmp_path / "tokenizer.json"))
    bos = inner.token_to_id("<s>")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    inner.save(str(tmp_path / "tokenizer.json"))

    async def make(prompt: Any) -> tuple[int, ...]:
        body = CompletionRequest(model="m", prompt=prompt)
        return (await completion_prompts(engine, body, encoder))[0]

    ids = conversation.tokenizer.encode("two")
    with serving(Conversation.load(tmp_path)) as (engine, encoder):
        assert asyncio.run(make("two")) == (bos, *ids)
        assert asyncio.run(make("")) == (bos,)
        assert asyncio.run(make(ids)) == tuple(ids)
