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

KEY = Key(0, "test")
TEXT = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(SPECIAL_TOKENS)), max_size=5).map("".join)

# A template in the manner of Qwen3: strips, searches its contents for tags, drops the thoughts of earlier turns.
STRIPPING = """\
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set said = m.content %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if not thought and '</think>' in said %}{%- set said = said.split('</think>')[-1] %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
{{- said.strip() + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# One that knows nothing of thoughts and marks the assistant's words, as transformers' training templates do.
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
    """A rollout in which the policy said `text`, markup and all."""
    ids = conversation.tokenizer.encode(text, parse_special=True) + [conversation.stop_ids[0]] * stop
    return conversation.prompt_rollout(problem(), KEY).append_sampled(
        ids, [-1.0] * len(ids), "stop" if stop else "length", 0
    )


def written(rollout: Rollout) -> list[int]:
    return [token for token, mine in zip(rollout.tokens, rollout.loss_mask, strict=True) if mine]


def foreign(*specials: str) -> Tokenizer:
    """A tokenizer as somebody else might bring it: other special tokens, none for thinking."""
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


# --- our template


def test_a_prompt_and_a_reply_look_like_this(conversation: Conversation) -> None:
    shown = conversation.tokenizer.decode(conversation.demonstration_rollout(Demonstration(problem(), "2+3", "5"), KEY).tokens)
    assert shown == "<|im_start|>user\nwhat is 2+3?<|im_end|>\n<|im_start|>assistant\n<think>2+3</think>5<|im_end|>"


@pytest.mark.parametrize("thought", [None, ""])
def test_a_bare_guess_thinks_nothing(conversation: Conversation, thought: str | None) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(), thought, "5"), KEY)
    assert conversation.tokenizer.decode(written(rollout)) == "<think></think>5<|im_end|>"
    assert conversation.thought_length(rollout) == 0
    assert conversation.parse_completion(rollout) == Completion("", "5", True)


@given(asked=TEXT, thought=TEXT, answer=TEXT)
def test_exactly_the_reply_is_written(conversation: Conversation, asked: str, thought: str, answer: str) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(asked), thought, answer), KEY)
    t = conversation.tokenizer
    marks = t.special_tokens
    reply = [marks["<think>"], *t.encode(thought), marks["</think>"], *t.encode(answer), marks["<|im_end|>"]]
    assert written(rollout) == reply
    assert rollout.tokens == (*conversation.prompt(problem(asked).messages), *reply)
    assert rollout.turns == (len(rollout) - len(reply),)
    assert rollout.finish_reason == "context"
    assert all(math.isnan(p) for p in rollout.logprob)


@given(asked=TEXT)
def test_a_prompt_is_the_templates_markup_around_plain_text(conversation: Conversation, asked: str) -> None:
    t = conversation.tokenizer
    start, end = t.special_tokens["<|im_start|>"], t.special_tokens["<|im_end|>"]
    begun = conversation.prompt_rollout(problem(asked), KEY)
    assert begun.tokens == (start, *t.encode("user\n" + asked), end, *t.encode("\n"), start, *t.encode("assistant\n"))
    assert not any(begun.loss_mask)


@given(thought=TEXT, answer=TEXT)
def test_what_was_demonstrated_is_read(conversation: Conversation, thought: str, answer: str) -> None:
    rollout = conversation.demonstration_rollout(Demonstration(problem(), thought, answer), KEY)
    assert conversation.parse_completion(rollout) == Completion(thought, answer, True)
    assert conversation.thought_length(rollout) == len(conversation.tokenizer.encode(thought))


@given(role=TEXT, asked=TEXT, thought=TEXT, answer=TEXT)
def test_no_message_can_forge_markup(
    conversation: Conversation, role: str, asked: str, thought: str, answer: str
) -> None:
    messages = (Message(role, asked), Message("assistant", answer, thought), Message("user", asked))
    markup = [token for token in conversation.prompt(messages) if token in conversation.tokenizer.added]
    assert markup == conversation.tokenizer.encode(
        "<|im_start|><|im_end|><|im_start|><think></think><|im_end|><|im_start|><|im_end|><|im_start|>", parse_special=True
    )


def test_many_demonstrations_equal_one_by_one(conversation: Conversation) -> None:
    lessons = [Demonstration(problem(f"{n}+1? <think>" * (n % 2)), "add", str(n + 1)) for n in range(6)]
    keys = [KEY._replace(problem=n) for n in range(6)]
    one_by_one = [conversation.demonstration_rollout(lesson, key) for lesson, key in zip(lessons, keys, strict=True)]
    together = conversation.demonstration_rollouts(lessons, keys)
    assert [(r.tokens, r.loss_mask, r.key) for r in together] == [(r.tokens, r.loss_mask, r.key) for r in one_by_one]


def test_earlier_thoughts_stay_in_our_template(conversation: Conversation) -> None:
    shown = conversation.render([Message("user", "a"), Message("assistant", "b", "t"), Message("user", "c")])
    assert "<|im_start|>assistant\n<think>t</think>b<|im_end|>\n<|im_start|>user\nc<|im_end|>" in shown


# --- reading what a policy said


@pytest.mark.parametrize(
    ("said", "stop", "reply", "length"),
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
def test_replies_of_every_shape(
    conversation: Conversation, said: str, stop: bool, reply: Completion, length: int
) -> None:
    rollout = sampled(conversation, said, stop)
    assert conversation.parse_completion(rollout) == reply
    assert conversation.thought_length(rollout) == length


def test_a_tag_typed_by_hand_does_not_end_the_thinking(conversation: Conversation) -> None:
    t = conversation.tokenizer
    ids = [t.special_tokens["<think>"], *t.encode("a</think>b"), t.special_tokens["</think>"], *t.encode("c</think>d")]
    rollout = conversation.prompt_rollout(problem(), KEY).append_sampled(ids, [0.0] * len(ids), "length", 0)
    assert conversation.parse_completion(rollout) == Completion("a</think>b", "c</think>d", False)


@pytest.mark.fault("tool text in a reward")
def test_only_the_last_turn_is_read(conversation: Conversation) -> None:
    talk = conversation.append_messages(sampled(conversation, "<think>x</think>5"), [Message("user", "sure?")])
    ids = conversation.tokenizer.encode("<think>yy</think>6", parse_special=True)
    talk = talk.append_sampled(ids, [0.0] * len(ids), "length", 0)
    assert conversation.parse_completion(talk) == Completion("yy", "6", False)


# --- turn after turn


@pytest.mark.parametrize("asked", ["sure?", "forged <|im_end|>"])
@pytest.mark.fault("ids change on the way")
def test_a_spliced_conversation_equals_a_rendered_one(conversation: Conversation, asked: str) -> None:
    talk = conversation.append_messages(sampled(conversation, "<think>x</think>5"), [Message("user", asked)])
    rendered = conversation.prompt((*problem().messages, Message("assistant", "5", "x"), Message("user", asked)))
    assert talk.tokens == rendered
    assert written(talk) == conversation.tokenizer.encode("<think>x</think>5<|im_end|>", parse_special=True)


def test_a_turn_that_was_cut_off_is_closed(conversation: Conversation) -> None:
    talk = conversation.append_messages(sampled(conversation, "<think>x", stop=False), [Message("user", "go on")])
    shown = conversation.tokenizer.decode(talk.tokens)
    assert shown.endswith("<think>x<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n")
    assert len(written(talk)) == len(conversation.tokenizer.encode("<think>x", parse_special=True))


# --- other templates


@given(asked=TEXT)
@settings(max_examples=40)
def test_a_template_that_strips_and_searches_is_not_fooled(tokenizer: Tokenizer, asked: str) -> None:
    talk = Conversation(tokenizer, STRIPPING)
    rollout = talk.demonstration_rollout(Demonstration(problem(asked), "by hand", "a </think> tag"), KEY)
    assert tokenizer.decode(written(rollout)) == "<think>\nby hand\n</think>\n\na </think> tag<|im_end|>"
    assert talk.parse_completion(rollout) == Completion("by hand", "a </think> tag", True)


def test_a_thought_that_never_ends_keeps_its_last_line_end(tokenizer: Tokenizer) -> None:
    talk = Conversation(tokenizer, STRIPPING)
    assert talk.parse_completion(sampled(talk, "<think>\nab\n", stop=False)) == Completion("ab\n", "", False)


def test_a_template_whose_answers_follow_the_question_at_once_serves(tokenizer: Tokenizer) -> None:
    """In the manner of Mistral's and Llama 2's: no generation prompt, `[/INST]` is one."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    talk = Conversation(tokenizer, template)
    assert talk.render((Message("user", "2 + 2?"),)) == "[INST] 2 + 2? [/INST]"
    assert talk.parse_completion(sampled(talk, " 4")) == Completion(None, " 4")


def test_a_template_may_drop_earlier_thoughts(tokenizer: Tokenizer) -> None:
    shown = Conversation(tokenizer, STRIPPING).render(
        [Message("user", "a"), Message("assistant", "b", "secret"), Message("user", "c")]
    )
    assert "secret" not in shown


def test_a_template_without_thoughts_gets_them_in_the_content(tokenizer: Tokenizer) -> None:
    talk = Conversation(tokenizer, PLAIN)
    rollout = talk.demonstration_rollout(Demonstration(problem(), "2+3", "5"), KEY)
    expected = [tokenizer.special_tokens["<think>"], *tokenizer.encode("2+3"), tokenizer.special_tokens["</think>"]]
    assert written(rollout) == [*expected, *tokenizer.encode("5"), tokenizer.special_tokens["<|im_end|>"]]
    assert talk.parse_completion(rollout) == Completion("2+3", "5", True)
    assert talk.parse_completion(talk.demonstration_rollout(Demonstration(problem(), None, "5"), KEY)) == Completion(
        None, "5", True
    )


def test_a_prompt_may_open_the_thought(tokenizer: Tokenizer) -> None:
    opening = STRIPPING.replace(
        "{{- '<|im_start|>assistant\\n' }}{%- endif %}\n", "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}\n"
    )
    assert opening != STRIPPING
    talk = Conversation(tokenizer, opening)
    rollout = talk.demonstration_rollout(Demonstration(problem(), "why", "5"), KEY)
    assert tokenizer.decode(written(rollout)) == "why\n</think>\n\n5<|im_end|>"
    assert talk.parse_completion(rollout) == Completion("why", "5", True)


@pytest.mark.parametrize("template", [STRIPPING, PLAIN, None])
def test_transformers_renders_the_same_text_and_ids(tokenizer: Tokenizer, tmp_path: Path, template: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    talk = Conversation(tokenizer, template)
    talk.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = (
        Message("system", "be kind"),
        Message("user", "2 + 3?"),
        Message("assistant", "5"),
        Message("user", "é?"),
    )
    given = [{"role": m.role, "content": m.content} for m in messages]
    for many in (2, 4):
        assert theirs.apply_chat_template(given[:many], tokenize=False, add_generation_prompt=True) == talk.render(
            messages[:many]
        )
        found = theirs.apply_chat_template(given[:many], add_generation_prompt=True, return_dict=False)
        assert tuple(found) == talk.prompt(messages[:many])
    assert theirs.apply_chat_template(given[:3], tokenize=False) == talk.render(messages[:3], add_generation_prompt=False)


def test_thoughts_reach_our_template_through_transformers(conversation: Conversation, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    conversation.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "t"}]
    assert theirs.apply_chat_template(given, tokenize=False) == conversation.render(
        [Message("user", "a"), Message("assistant", "b", "t")], add_generation_prompt=False
    )


def test_a_saved_conversation_loads_the_same_and_says_where_to_stop(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Conversation(tokenizer, PLAIN).save(tmp_path)
    loaded = Conversation.load(tmp_path)
    assert loaded.template == PLAIN
    assert loaded.stop_ids == (tokenizer.special_tokens["<|im_end|>"], tokenizer.eos_id)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == list(loaded.stop_ids)


# --- a tokenizer without ids for thinking


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("<think>two and three</think>5", Completion("two and three", "5", True)),
        ("<think>two", Completion("two", "", True)),
        ("5", Completion(None, "5", True)),
        ("<think>a</think>the tag </think> ends it", Completion("a", "the tag </think> ends it", True)),
    ],
)
def test_without_ids_the_first_tags_of_the_text_count(said: str, reply: Completion) -> None:
    talk = Conversation(foreign("<end>"))
    assert talk.parse_completion(sampled(talk, said)) == reply


@pytest.mark.parametrize("closed", [True, False])
def test_without_ids_a_thought_has_about_as_many_tokens_as_its_text(closed: bool) -> None:
    talk = Conversation(foreign("<end>"))
    found = talk.thought_length(sampled(talk, "<think>two and three" + "</think>5" * closed))
    assert abs(found - len(talk.tokenizer.encode("two and three"))) <= 1
    assert talk.thought_length(sampled(talk, "no thought")) == 0


def test_a_model_without_a_template_gets_one_that_ends_with_its_own_eos() -> None:
    talk = Conversation(foreign("<end>"))
    rollout = talk.demonstration_rollout(Demonstration(problem(), "t", "5"), KEY)
    assert talk.stop_ids == (talk.tokenizer.eos_id,)
    assert talk.tokenizer.decode(rollout.tokens) == "user\nwhat is 2+3?<end>\nassistant\n<think>t</think>5<end>"


def test_tokens_that_swallow_blanks_do_so_beside_typed_markup_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Conversation(tokenizer).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    recipe = json.loads(path.read_text())
    for token in recipe["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    path.write_text(json.dumps(recipe))
    talk = Conversation.load(tmp_path)
    end = tokenizer.special_tokens["<|im_end|>"]
    plain, typed = talk.prompt(problem("a").messages), talk.prompt(problem("<think>").messages)
    assert plain[plain.index(end) + 1 :] == typed[typed.index(end) + 1 :]
    assert plain[plain.index(end) + 1] == tokenizer.special_tokens["<|im_start|>"]


# --- templates that cannot serve


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}",
            "no assistant turn",
        ),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "no generation prompt"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "does not end",
        ),
        ("{% for m in messages %}", "line 1"),
        ("{{ raise_exception('only tools here') }}", "only tools here"),
        ("{{ strftime_now('%Y') }}", "strftime_now"),
    ],
)
def test_a_template_that_cannot_serve_is_refused_at_once(tokenizer: Tokenizer, template: str, complaint: str) -> None:
    with pytest.raises(SchoolError, match=complaint):
        Conversation(tokenizer, template)


def test_a_template_that_does_not_continue_its_prompt_is_refused_with_the_difference(tokenizer: Tokenizer) -> None:
    broken = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif")
    assert broken != PLAIN
    with pytest.raises(SchoolError, match="asks with '<think>' where a worked example has '5"):
        Conversation(tokenizer, broken).demonstration_rollout(Demonstration(problem(), None, "5"), KEY)


def test_a_template_that_drops_thoughts_is_refused_for_thinkers(tokenizer: Tokenizer) -> None:
    dropping = PLAIN.replace(
        "{{ m.content }}<|im_end|>{% endgen", "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgen"
    )
    assert dropping != PLAIN
    talk = Conversation(tokenizer, dropping)
    with pytest.raises(SchoolError, match="drops thoughts"):
        talk.demonstration_rollout(Demonstration(problem(), "t", "5"), KEY)
    assert talk.parse_completion(talk.demonstration_rollout(Demonstration(problem(), None, "5"), KEY)).answer == "5"


@pytest.mark.fault("mask all zero")
def test_an_empty_mask_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SchoolError, match="the mask would be empty"):
        Conversation(tokenizer, PLAIN).demonstration_rollout(Demonstration(problem(), None, ""), KEY)


@pytest.mark.fault("mask all one")
def test_a_full_mask_is_refused(tokenizer: Tokenizer) -> None:
    silent = (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt and messages[0].content != 'x' %}.{% endif %}"
    )
    with pytest.raises(SchoolError, match="the mask would be full"):
        Conversation(tokenizer, silent).demonstration_rollout(Demonstration(problem("x"), None, "5"), KEY)
