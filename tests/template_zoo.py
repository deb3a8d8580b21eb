"""Chat templates of 129 public models (../shared/cases/templates), with small tokenizers that have their tokens.

The tokenizers are of three kinds: `bytes` splits into bytes, as GPT-2, Llama 3 and Qwen do; `blank` puts a blank before
each text, also after special tokens, as Llama 2 does; `first` puts one only at the start, as Mistral v0.3 does.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Demonstration, Key, Message, Problem, SchoolError

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "cases" / "templates"
PATHS = sorted(FOLDER.glob("*.jinja"))
KINDS = ("bytes", "blank", "first")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "templates.md"

_QUESTION, _ANSWER, _THOUGHT, _SECOND = "two plus three", "five", "count on", "four plus one"
_CORPUS = ["what is two plus three? the answer is five, because two and three are five. user assistant system"] * 4

_TOKENS = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜\s]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?[A-Za-z_:0-9]+>|\[/?[A-Z_]{3,}\]|\]~!?b\]?\[?|\[e~\["
)


class Family(NamedTuple):
    """A token by which a template is recognised, and the special tokens of its models as published."""

    mark: str
    bos: str
    eos: str
    stops: tuple[str, ...] = ()


FAMILIES = (
    Family("<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
    Family("<seed:eos>", "<seed:bos>", "<seed:eos>"),
    Family("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    Family("<end_of_turn>", "<bos>", "<eos>", ("<eos>", "<end_of_turn>")),
    Family("<turn|>", "<bos>", "<eos>", ("<eos>", "<turn|>")),
    Family("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    Family("<|return|>", "<|startoftext|>", "<|return|>", ("<|return|>", "<|endoftext|>", "<|call|>")),
    Family("<|observation|>", "", "<|endoftext|>", ("<|endoftext|>", "<|user|>", "<|observation|>")),
    Family("<|begin_user|>", "<s>", "<|end|>"),
    Family("<|tool_result|>", "<s>", "<|end|>"),
    Family("<|calls|>", "<s>", "</s>", ("</s>", "<|calls|>")),
    Family("<|end|>", "<s>", "<|endoftext|>", ("<|endoftext|>", "<|end|>")),
    Family("<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    Family("[e~[", "]~!b[", "[e~["),
    Family("<|assistant_end|>", "<s>", "<|assistant_end|>"),
    Family("<SPECIAL_12>", "<s>", "<SPECIAL_12>"),
    Family("<|eot|>", "<|bos|>", "<|eot|>"),
    Family("<end_of_utterance>", "<|begin_of_text|>", "<end_of_utterance>"),
    Family("<sep>", "<|endoftext|>", "<|endoftext|>", ("<|endoftext|>", "<sep>")),
    Family("<|startoftext|>", "<|startoftext|>", "<|im_end|>"),
    Family("<|im_end|>", "<|startoftext|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    Family("", "<s>", "</s>"),
)


@lru_cache
def base_tokenizer(kind: str) -> str:
    """tokenizer.json of a small tokenizer without special tokens."""
    if kind == "bytes":
        inner = Inner(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        inner.train_from_iterator(
            _CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
        )
        return inner.to_str()
    learner = Inner(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=70, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    inner = Inner(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "blank":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner.to_str()


def family_of(template: str) -> Family:
    return next(family for family in FAMILIES if family.mark in template)


def write_model(folder: Path, template: str, kind: str = "bytes", plain: tuple[str, ...] = ()) -> Path:
    """A folder with the tokenizer files of a model with this chat template. `plain` are marks that are no tokens."""
    family = family_of(template)
    inner = Inner.from_str(base_tokenizer(kind))
    found = dict.fromkeys((family.bos, family.eos, *family.stops, *_TOKENS.findall(template)))
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in found if token not in ("", *plain)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.eos,
        "clean_up_tokenization_spaces": False,
    }
    config |= {"bos_token": family.bos} if family.bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    stops = [inner.token_to_id(token) for token in family.stops or (family.eos,)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops, "temperature": 0.6}))
    return folder


def load_model(folder: Path, path: Path, kind: str = "bytes") -> Conversation:
    return Conversation.load(write_model(folder, path.read_text(), kind))


def load_thinking(conversation: Conversation) -> Conversation:
    """The conversation with the argument that lets its model think, if its prompt closes the thought."""
    switch = conversation.thought_format.switch
    return conversation.with_arguments({switch: True}) if switch else conversation


def describe_thoughts(conversation: Conversation) -> str:
    """Describe the marks of a thought, and say whether the prompt or the model writes them."""
    style = conversation.thought_format
    start, end = (mark.strip().replace("\n", "\\n") for mark in (style.start, style.end))
    marks = f"`{start}` … `{end}`"
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


def _name(conversation: Conversation, token: int) -> str:
    return conversation.tokenizer.added_token_text(token)


def table(folder: Path) -> list[str]:
    """The lines of the table in docs/templates.md. The models are written into `folder`."""
    lines = ["| template | thoughts | a reply ends with | system message | second turn |", "|---|---|---|---|---|"]
    for path in PATHS:
        conversation = load_model(folder / path.stem, path)
        turns = [second_turn(conversation), second_turn(load_thinking(conversation), thought=True)]
        turn = turns[0] if turns[0] == turns[1] else f"{turns[0]}; with a thought: {turns[1]}"
        system = "own turn" if conversation.facts.knows_system else "before the first question"
        cells = (path.stem, describe_thoughts(conversation), describe_end(conversation), system, turn)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def write_table() -> None:
    """Renew the table in docs/templates.md: `python tests/template_zoo.py`."""
    import tempfile

    text = PAGE.read_text(encoding="utf-8")
    head = text[: text.index("| template |")]
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(head + "\n".join(table(Path(folder))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
