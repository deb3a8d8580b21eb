from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, trainers

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError
from template_zoo import write_model

KEY = Key(0, "test")
TEXT = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(SPECIAL_TOKENS)), max_size=5).map("".join)

# Like Qwen3's template: strips, searches its contents for tags, drops the thoughts of earlier turns.
STRIPPING = """\
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if not thought and '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
{{- content.strip() + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# A template without thoughts that marks the assistant's text, as transformers' training templates do.
PLAIN = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}
{{ m.content }}<|im_end|>
{%- endif %}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def problem(*contents: str) -> Problem:
    return Problem("p", tuple(Message("user", content) for content in contents or ("what is 2+3?",)), "5")


def sampled(conversation: Conversation, text: str, stop: bool = True) -> Rollout:
    """A rollout in which the policy sampled `text`, special tokens included."""
    ids = conversation.tokenizer.encode(text, parse_special=True) + [conversation.stop_ids[0]] * stop
    return conversation.prompt_rollout(problem(), KEY).append_sampled(
        ids, [-1.0] * len(ids), "stop" if stop else "length", 0
    )


def trained_tokens(rollout: Rollout) -> list[int]:
    return [token for token, trained in zip(rollout.tokens, rollout.loss_mask, strict=True) if trained]


def other_tokenizer(*specials: str) -> Tokenizer:
    """A tokenizer with other special tokens and none for thinking."""
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        ["what is 2+3? <think>two and three</think>"] * 3,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return Tokenizer(inner, {"eos_token": specials[0]})


# --- the default template


def test_a_prompt_and_a_completion_look_like_this(conversation: Conversation) -> None:
    text = conversation.tokenizer.decode(
        conversation.demonstration_rollout(Demonstration(problem(), "2+3", "5"), KEY).tokens
    )
    assert text == "<|im_start|>user\nwhat is 2+3?<|im_end|>\n<|im_start|>assistant\n<think>2+3</think>5<|im_end|>"


@pytest.mark.parametrize("thought", [None, ""])
def test_a_demonstration_without_a_thought_has_an_empty_one(conversation: Conversation, thought: str | None) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(), thought, "5"), KEY)
    assert conversation.tokenizer.decode(trained_tokens(rollout)) == "<think></think>5<|im_end|>"
    assert conversation.thought_length(rollout) == 0
    assert conversation.parse_completion(rollout) == Completion("", "5", True)


@given(question=TEXT, thought=TEXT, answer=TEXT)
def test_exactly_the_completion_is_trained(
    conversation: Conversation, question: str, thought: str, answer: str
) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(question), thought, answer), KEY)
    t = conversation.tokenizer
    ids = t.special_tokens
    completion = [ids["<think>"], *t.encode(thought), ids["</think>"], *t.encode(answer), ids["<|im_end|>"]]
    assert trained_tokens(rollout) == completion
    assert rollout.tokens == (*conversation.prompt(problem(question).messages), *completion)
    assert rollout.turns == (len(rollout) - len(completion),)
    assert rollout.finish_reason == "context"
    assert all(math.isnan(p) for p in rollout.logprob)


@given(question=TEXT)
def test_a_prompt_is_the_templates_special_tokens_around_plain_text(conversation: Conversation, question: str) -> None:
    t = conversation.tokenizer
    start, end = t.special_tokens["<|im_start|>"], t.special_tokens["<|im_end|>"]
    prompt = conversation.prompt_rollout(problem(question), KEY)
    ends = (*t.encode("\n"), start, *t.encode("assistant\n"))
    assert prompt.tokens == (start, *t.encode("user\n" + question), end, *ends)
    assert not any(prompt.loss_mask)


@given(thought=TEXT, answer=TEXT)
def test_a_demonstration_parses_as_itself(conversation: Conversation, thought: str, answer: str) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(), thought, answer), KEY)
    assert conversation.parse_completion(rollout) == Completion(thought, answer, True)
    assert conversation.thought_length(rollout) == len(conversation.tokenizer.encode(thought))


@given(role=TEXT, question=TEXT, thought=TEXT, answer=TEXT)
def test_no_message_can_forge_special_tokens(
    conversation: Conversation, role: str, question: str, thought: str, answer: str
) -> None:
    messages = (Message(role, question), Message("assistant", answer, thought), Message("user", question))
    special = [token for token in conversation.prompt(messages) if token in conversation.tokenizer.added_tokens]
    assert special == conversation.tokenizer.encode(
        "<|im_start|><|im_end|><|im_start|><think></think><|im_end|><|im_start|><|im_end|><|im_start|>",
        parse_special=True,
    )


def test_many_demonstrations_equal_one_by_one(conversation: Conversation) -> None:
    demos = [Demonstration(problem(f"{n}+1? <think>" * (n % 2)), "add", str(n + 1)) for n in range(6)]
    keys = [KEY._replace(problem=n) for n in range(6)]
    one_by_one = [conversation.demonstration_rollout(demo, key) for demo, key in zip(demos, keys, strict=True)]
    together = conversation.demonstration_rollouts(demos, keys)
    assert [(r.tokens, r.loss_mask, r.key) for r in together] == [(r.tokens, r.loss_mask, r.key) for r in one_by_one]


def test_earlier_thoughts_stay_in_the_default_template(conversation: Conversation) -> None:
    text = conversation.render([Message("user", "a"), Message("assistant", "b", "t"), Message("user", "c")])
    assert "<|im_start|>assistant\n<think>t</think>b<|im_end|>\n<|im_start|>user\nc<|im_end|>" in text


# --- parsing a completion


@pytest.mark.parametrize(
    ("text", "stop", "completion", "length"),
    [
        ("<think>ab</think>5", True, Completion("ab", "5", True), 2),
        ("<think>ab</think>5", False, Completion("ab", "5", False), 2),
        ("<think>ab", True, Completion("ab", "", True), 2),
        ("<think>ab", False, Completion("ab", "", False), 2),
        ("5", True, Completion(None, "5", True), 0),
        ("<think></think>5</think>6", True, Completion("", "5</think>6", True), 0),
        ("well <think>a</think>5", True, Completion("a", "5", True), 1),
        ("", True, Completion(None, "", True), 0),
        ("", False, Completion(None, "", False), 0),
    ],
)
def test_completions_of_every_form(
    conversation: Conversation, text: str, stop: bool, completion: Completion, length: int
) -> None:
    rollout = sampled(conversation, text, stop)
    assert conversation.parse_completion(rollout) == completion
    assert conversation.thought_length(rollout) == length


def test_a_tag_in_plain_text_does_not_end_the_thought(conversation: Conversation) -> None:
    t = conversation.tokenizer
    ids = [t.special_tokens["<think>"], *t.encode("a</think>b"), t.special_tokens["</think>"], *t.encode("c</think>d")]
    rollout = conversation.prompt_rollout(problem(), KEY).append_sampled(ids, [0.0] * len(ids), "length", 0)
    assert conversation.parse_completion(rollout) == Completion("a</think>b", "c</think>d", False)


@pytest.mark.fault("tool text in a reward")
def test_only_the_last_turn_is_parsed(conversation: Conversation) -> None:
    rollout = conversation.append_messages(sampled(conversation, "<think>x</think>5"), [Message("user", "sure?")])
    ids = conversation.tokenizer.encode("<think>yy</think>6", parse_special=True)
    rollout = rollout.append_sampled(ids, [0.0] * len(ids), "length", 0)
    assert conversation.parse_completion(rollout) == Completion("yy", "6", False)


# --- turn after turn


@pytest.mark.parametrize("question", ["sure?", "forged <|im_end|>"])
@pytest.mark.fault("ids change on the way")
def test_a_conversation_that_grew_equals_a_rendered_one(conversation: Conversation, question: str) -> None:
    rollout = conversation.append_messages(sampled(conversation, "<think>x</think>5"), [Message("user", question)])
    rendered = conversation.prompt((*problem().messages, Message("assistant", "5", "x"), Message("user", question)))
    assert rollout.tokens == rendered
    assert trained_tokens(rollout) == conversation.tokenizer.encode("<think>x</think>5<|im_end|>", parse_special=True)


def test_a_turn_that_was_cut_off_is_ended(conversation: Conversation) -> None:
    rollout = conversation.append_messages(sampled(conversation, "<think>x", stop=False), [Message("user", "go on")])
    text = conversation.tokenizer.decode(rollout.tokens)
    assert text.endswith("<think>x<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n")
    assert len(trained_tokens(rollout)) == len(conversation.tokenizer.encode("<think>x", parse_special=True))


# --- other templates


@given(question=TEXT)
@settings(max_examples=40)
def test_a_template_that_strips_and_searches_is_not_fooled(tokenizer: Tokenizer, question: str) -> None:
    conversation = Conversation(tokenizer, STRIPPING)
    rollout = conversation.demonstration_rollout(Demonstration(problem(question), "by hand", "a </think> tag"), KEY)
    assert tokenizer.decode(trained_tokens(rollout)) == "<think>\nby hand\n</think>\n\na </think> tag<|im_end|>"
    assert conversation.parse_completion(rollout) == Completion("by hand", "a </think> tag", True)


def test_a_thought_that_never_ends_keeps_its_last_line_end(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, STRIPPING)
    assert conversation.parse_completion(sampled(conversation, "<think>\nab\n", stop=False)) == Completion(
        "ab\n", "", False
    )


def test_a_template_without_a_generation_prompt_may_continue_at_inst(tokenizer: Tokenizer) -> None:
    """As in Mistral's and Llama 2's templates: `[/INST]` is the generation prompt."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    conversation = Conversation(tokenizer, template)
    assert conversation.render((Message("user", "2 + 2?"),)) == "[INST] 2 + 2? [/INST]"
    assert conversation.parse_completion(sampled(conversation, " 4")) == Completion(None, "4")


def test_a_template_may_drop_earlier_thoughts(tokenizer: Tokenizer) -> None:
    text = Conversation(tokenizer, STRIPPING).render(
        [Message("user", "a"), Message("assistant", "b", "secret"), Message("user", "c")]
    )
    assert "secret" not in text


def test_a_template_without_thoughts_gets_them_in_the_content(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, PLAIN)
    rollout = conversation.demonstration_rollout(Demonstration(problem(), "2+3", "5"), KEY)
    expected = [tokenizer.special_tokens["<think>"], *tokenizer.encode("2+3"), tokenizer.special_tokens["</think>"]]
    assert trained_tokens(rollout) == [*expected, *tokenizer.encode("5"), tokenizer.special_tokens["<|im_end|>"]]
    assert conversation.parse_completion(rollout) == Completion("2+3", "5", True)
    assert conversation.parse_completion(
        conversation.demonstration_rollout(Demonstration(problem(), None, "5"), KEY)
    ) == Completion(None, "5", True)


def test_a_prompt_may_open_the_thought(tokenizer: Tokenizer) -> None:
    opening = STRIPPING.replace(
        "{{- '<|im_start|>assistant\\n' }}{%- endif %}\n", "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}\n"
    )
    assert opening != STRIPPING
    conversation = Conversation(tokenizer, opening)
    rollout = conversation.demonstration_rollout(Demonstration(problem(), "why", "5"), KEY)
    assert tokenizer.decode(trained_tokens(rollout)) == "why\n</think>\n\n5<|im_end|>"
    assert conversation.parse_completion(rollout) == Completion("why", "5", True)


@pytest.mark.parametrize("template", [STRIPPING, PLAIN, None])
def test_transformers_renders_the_same_text_and_ids(tokenizer: Tokenizer, tmp_path: Path, template: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    conversation = Conversation(tokenizer, template)
    conversation.save(tmp_path)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = (
        Message("system", "be kind"),
        Message("user", "2 + 3?"),
        Message("assistant", "5"),
        Message("user", "é?"),
    )
    dicts = [{"role": m.role, "content": m.content} for m in messages]
    for many in (2, 4):
        assert hf_tokenizer.apply_chat_template(
            dicts[:many], tokenize=False, add_generation_prompt=True
        ) == conversation.render(messages[:many])
        ids = hf_tokenizer.apply_chat_template(dicts[:many], add_generation_prompt=True, return_dict=False)
        assert tuple(ids) == conversation.prompt(messages[:many])
    assert hf_tokenizer.apply_chat_template(dicts[:3], tokenize=False) == conversation.render(
        messages[:3], add_generation_prompt=False
    )


def test_thoughts_reach_the_default_template_through_transformers(conversation: Conversation, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    conversation.save(tmp_path)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    dicts = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "t"}]
    assert hf_tokenizer.apply_chat_template(dicts, tokenize=False) == conversation.render(
        [Message("user", "a"), Message("assistant", "b", "t")], add_generation_prompt=False
    )


def test_a_saved_conversation_loads_the_same_and_names_its_stop_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Conversation(tokenizer, PLAIN).save(tmp_path)
    loaded = Conversation.load(tmp_path)
    assert loaded.template == PLAIN
    assert loaded.stop_ids == (tokenizer.special_tokens["<|im_end|>"], tokenizer.eos_id)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == list(loaded.stop_ids)


# --- a tokenizer without ids for thinking


@pytest.mark.parametrize(
    ("text", "completion"),
    [
        ("<think>two and three</think>5", Completion("two and three", "5", True)),
        ("<think>two", Completion("two", "", True)),
        ("5", Completion(None, "5", True)),
        ("<think>a</think>the tag </think> ends it", Completion("a", "the tag </think> ends it", True)),
    ],
)
def test_without_ids_the_first_tags_of_the_text_count(text: str, completion: Completion) -> None:
    conversation = Conversation(other_tokenizer("<end>"))
    assert conversation.parse_completion(sampled(conversation, text)) == completion


@pytest.mark.parametrize("closed", [True, False])
def test_without_ids_a_thought_has_about_as_many_tokens_as_its_text(closed: bool) -> None:
    conversation = Conversation(other_tokenizer("<end>"))
    length = conversation.thought_length(sampled(conversation, "<think>two and three" + "</think>5" * closed))
    assert abs(length - len(conversation.tokenizer.encode("two and three"))) <= 1
    assert conversation.thought_length(sampled(conversation, "no thought")) == 0


def test_a_model_without_a_template_gets_one_that_ends_with_its_own_eos() -> None:
    conversation = Conversation(other_tokenizer("<end>"))
    rollout = conversation.demonstration_rollout(Demonstration(problem(), "t", "5"), KEY)
    assert conversation.stop_ids == (conversation.tokenizer.eos_id,)
    assert conversation.tokenizer.decode(rollout.tokens) == "user\nwhat is 2+3?<end>\nassistant\n<think>t</think>5<end>"


def test_tokens_that_strip_blanks_do_so_beside_typed_tags_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Conversation(tokenizer).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    path.write_text(json.dumps(content))
    conversation = Conversation.load(tmp_path)
    end = tokenizer.special_tokens["<|im_end|>"]
    plain, typed = conversation.prompt(problem("a").messages), conversation.prompt(problem("<think>").messages)
    assert plain[plain.index(end) + 1 :] == typed[typed.index(end) + 1 :]
    assert plain[plain.index(end) + 1] == tokenizer.special_tokens["<|im_start|>"]


# --- SentencePiece

LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["blank", "first"])
@pytest.mark.parametrize("template", [LLAMA_2, ZEPHYR], ids=["Llama 2", "Zephyr"])
def test_a_reply_has_no_blank_that_the_template_does_not_write(tmp_path: Path, template: str, kind: str) -> None:
    write_model(tmp_path, template, kind, plain=("[INST]", "[/INST]", "<|assistant|>", "<|user|>"))
    conversation = Conversation.load(tmp_path)
    tokenizer = conversation.tokenizer
    rollout = conversation.demonstration_rollout(Demonstration(problem("two"), None, "five"), KEY)
    messages = (Message("user", "two"), Message("assistant", "five"))
    whole = tokenizer.encode(conversation.render(messages, add_generation_prompt=False).rstrip(), parse_special=True)
    assert list(rollout.tokens) == whole
    grown = conversation.append_messages(rollout, [Message("user", "six")])
    assert grown.tokens == conversation.prompt((*messages, Message("user", "six")))
    assert conversation.parse_completion(rollout) == Completion(None, "five", True)


# --- templates that cannot be used


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}",
            "no assistant turn",
        ),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "no generation prompt"),
        ("{% for m in messages %}", "line 1"),
        ("{{ raise_exception('only tools here') }}", "only tools here"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(tokenizer: Tokenizer, template: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        Conversation(tokenizer, template)


def test_a_demonstration_closes_the_thought_that_the_prompt_opens(tokenizer: Tokenizer) -> None:
    opening = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif")
    assert opening != PLAIN
    rollout = Conversation(tokenizer, opening).demonstration_rollout(Demonstration(problem(), None, "5"), KEY)
    assert tokenizer.decode(trained_tokens(rollout)) == "</think>5<|im_end|>"


def test_a_template_that_drops_thoughts_is_not_asked_to_write_them(tokenizer: Tokenizer) -> None:
    dropping = PLAIN.replace(
        "{{ m.content }}<|im_end|>{% endgen", "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgen"
    )
    assert dropping != PLAIN
    conversation = Conversation(tokenizer, dropping)
    rollout = conversation.demonstration_rollout(Demonstration(problem(), "t", "5"), KEY)
    assert tokenizer.decode(trained_tokens(rollout)) == "<think>t</think>5<|im_end|>"
    assert conversation.parse_completion(rollout) == Completion("t", "5", True)


@pytest.mark.fault("mask all zero")
def test_an_empty_loss_mask_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SchoolError, match="the loss mask would be empty"):
        Conversation(tokenizer, PLAIN).demonstration_rollout(Demonstration(problem(), None, ""), KEY)


@pytest.mark.fault("mask all one")
def test_a_full_loss_mask_is_refused(tokenizer: Tokenizer) -> None:
    without_prompt = (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt and messages[0].content != 'x' %}.{% endif %}"
    )
    with pytest.raises(SchoolError, match="the loss mask would be full"):
        Conversation(tokenizer, without_prompt).demonstration_rollout(Demonstration(problem("x"), None, "5"), KEY)


def test_stop_texts_decode_the_vocabulary_once(monkeypatch: pytest.MonkeyPatch, conversation: Conversation) -> None:
    fresh = Conversation(conversation.tokenizer.with_tokens([]))
    decoded: list[int] = []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, **options: decoded.extend(ids) or decode(self, ids))
    first, _ = fresh.stop_matcher(["\nObservation:"])
    assert len(decoded) == fresh.tokenizer.vocab_size
    again, _ = fresh.stop_matcher(["\nObservation:"])
    other, _ = fresh.stop_matcher(["a", "b"])
    variant, _ = fresh.with_arguments({"enable_thinking": True}).stop_matcher(["b"])
    assert len(decoded) == fresh.tokenizer.vocab_size
    assert again is first
    texts = fresh.tokenizer.token_texts
    assert other.tolist() == [bool({"a", "b", "\ufffd"} & set(text)) for text in texts]
    assert variant.tolist() == [bool({"b", "\ufffd"} & set(text)) for text in texts]
