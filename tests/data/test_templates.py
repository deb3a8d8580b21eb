"""The chat templates of 129 public models, with tokenizers of three kinds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_decode import StreamDecoder
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, Rollout
from template_zoo import FOLDER, KINDS, PAGE, PATHS, load_model, load_thinking, table

pytestmark = pytest.mark.skipif(not PATHS, reason=f"the chat templates of public models are not in {FOLDER}")

KEY = Key(0, "test")
QUESTION = Message("user", "what is two plus three?")
THOUGHT, ANSWER = "two and three are five", "the answer is five"
TEMPLATES = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def demonstrate(conversation: Conversation, thought: str | None) -> Rollout:
    return conversation.demonstration_rollout(Demonstration(Problem("p", (QUESTION,), "5"), thought, ANSWER), KEY)


def hf_prompt(folder: Path, conversation: Conversation, messages: tuple[Message, ...]) -> tuple[int, ...]:
    """The ids of a prompt by transformers, on the day that our templates see. Contents are parts where they must be."""
    transformers = pytest.importorskip("transformers")
    parts = conversation.facts.parts
    dicts: list[dict[str, Any]] = [
        {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content} for m in messages
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    variables: dict[str, Any] = dict(conversation.facts.variables)
    return tuple(tokenizer.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False, **variables))


@pytest.fixture
def day_of_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls(2024, 7, 26)

    pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day)


@TEMPLATES
@pytest.mark.usefixtures("day_of_templates")
def test_a_prompt_has_the_ids_of_transformers(tmp_path: Path, path: Path) -> None:
    for kind in KINDS:
        conversation = load_model(tmp_path / kind, path, kind)
        system = (Message("system", "be kind"),) if conversation.facts.knows_system else ()
        assert conversation.prompt((*system, QUESTION)) == hf_prompt(tmp_path / kind, conversation, (*system, QUESTION))


@TEMPLATES
@pytest.mark.parametrize("kind", KINDS)
def test_a_demonstration_trains_the_reply_and_its_end(tmp_path: Path, path: Path, kind: str) -> None:
    conversation = load_thinking(load_model(tmp_path, path, kind))
    for thought in (None, THOUGHT):
        rollout = demonstrate(conversation, thought)
        prompt = conversation.prompt((QUESTION,))
        assert rollout.tokens[: len(prompt)] == prompt
        assert rollout.loss_mask == (*(False for _ in prompt), *(True for _ in rollout.tokens[len(prompt) :]))
        assert rollout.tokens[-1] == conversation.stop_ids[0]
        assert not set(conversation.stop_ids) & set(rollout.tokens[len(prompt) : -1])
        completion = conversation.parse_completion(rollout)
        assert completion == Completion(completion.thought, ANSWER, True)
        assert (completion.thought or None) == thought
        thought_ids = conversation.tokenizer.encode(thought or "", continues=True)
        assert abs(conversation.thought_length(rollout) - len(thought_ids)) <= 3  # blanks beside the marks count too


@TEMPLATES
def test_a_streamed_reply_has_the_text_of_the_whole_one(tmp_path: Path, path: Path) -> None:
    conversation = load_thinking(load_model(tmp_path, path))
    for thought in (None, THOUGHT):
        rollout = demonstrate(conversation, thought)
        decoder = StreamDecoder(conversation)
        deltas = [delta for token in rollout.last_turn() for delta in decoder.push(token)] + decoder.flush()
        text = {part: "".join(delta.text for delta in deltas if delta.part == part) for part in ("thought", "answer")}
        assert text == {"thought": thought or "", "answer": ANSWER}


@TEMPLATES
def test_a_second_turn_begins_with_the_first(tmp_path: Path, path: Path) -> None:
    conversation = load_model(tmp_path, path)
    reply = demonstrate(conversation, None)
    grown = conversation.append_messages(reply, [Message("user", "what is five?")])
    assert grown.tokens[: len(reply)] == reply.tokens
    added = conversation.tokenizer.decode(grown.tokens[len(reply) :])
    assert added.count("what is five?") == 1
    generation = conversation.render((QUESTION,)).rpartition(QUESTION.content)[2]
    assert added.endswith(generation)


def test_the_table_in_the_docs_is_what_the_templates_do(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index("| template |") :].splitlines() == table(tmp_path)
