"""Describes in words what was recognised in a model's tokenizer and chat template, for `school doctor` and the docs."""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Demonstration, Key, Message, Problem, SchoolError

_QUESTION, _ANSWER, _THOUGHT, _SECOND = "two plus three", "five", "count on", "four plus one"


def describe_conversation(conversation: Conversation) -> dict[str, str]:
    """Return what was recognised as {topic: text}: marks of thought, stop ids, bos, system messages, second turn."""
    return {
        "thoughts": describe_thoughts(conversation),
        "reply ends with": describe_end(conversation),
        "stops at": ", ".join(_name(conversation, token) for token in conversation.stop_ids),
        "texts begin with": "".join(_name(conversation, token) for token in conversation.tokenizer.bos_ids)
        or "nothing",
        "system message": "own turn" if conversation.facts.knows_system else "before the first question",
        "second turn": second_turn(conversation, _thinks(conversation)),
    }


def describe_thoughts(conversation: Conversation) -> str:
    """Describe the marks of a thought, and say whether the prompt or the model writes them."""
    style = conversation.thought_format
    marks = f"`{_inline(style.start)}` … `{_inline(style.end)}`"
    if not style.own:
        return "none of its own"
    if style.opened_by_prompt:
        return f"{marks}, opened by the prompt"
    if style.switch:
        return f"{marks}, closed by the prompt; `{style.switch}` opens them"
    return marks


def describe_end(conversation: Conversation) -> str:
    """Describe the token that ends a reply, and say whether the template writes this token after the last reply."""
    end = f"`{_name(conversation, conversation.facts.end_id)}`"
    return end if conversation.facts.ends_itself else f"{end} (not written by the template)"


def second_turn(conversation: Conversation, thought: bool = False) -> str:
    """Say whether a conversation that grew turn by turn has the same ids as the same conversation when it is rendered
    as a whole.

    A growing conversation keeps the ids that were sampled, but a template may write an earlier turn in another way.
    If the template writes an earlier turn in another way, the result names the sampled part that stays.
    """
    question, second = Message("user", _QUESTION), Message("user", _SECOND)
    demonstration = Demonstration(Problem("report", (question,), ""), _THOUGHT if thought else None, _ANSWER)
    try:
        reply = conversation.demonstration_rollout(demonstration, Key(0, "report"))
        whole = conversation.prompt((question, Message("assistant", _ANSWER, demonstration.thought), second))
    except SchoolError as error:
        return str(error)
    grown = conversation.append_messages(reply, [second])
    if grown.tokens == whole:
        return "equal"
    style, text = conversation.thought_format, conversation.tokenizer.decode(whole)
    parts = []
    if thought and _THOUGHT not in text:
        parts.append("the thought stays")
    elif grown.tokens[: reply.turns[0]] != whole[: reply.turns[0]] or _opening(conversation, reply.tokens) not in text:
        parts.append("the empty thought stays" if style.own else "the prompt stays")
    if conversation.facts.next_end_id != conversation.facts.end_id:
        parts.append(f"the end `{_name(conversation, reply.tokens[-1])}` stays")
    return " and ".join(parts) or "the reply stays as it was sampled"


def _opening(conversation: Conversation, ids: tuple[int, ...]) -> str:
    """Return the text of a conversation up to its answer."""
    return conversation.tokenizer.decode(ids).rpartition(_ANSWER)[0]


def _thinks(conversation: Conversation) -> bool:
    return conversation.thought_format.own and not conversation.thought_format.switch


def _name(conversation: Conversation, token: int) -> str:
    return conversation.tokenizer.added_token_text(token)


def _inline(text: str) -> str:
    return text.strip().replace("\n", "\\n")
