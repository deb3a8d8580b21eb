"""The task `ifeval:PATH.jsonl`: instructions that code can check, as in IFEval (Zhou et al. 2023, arXiv 2311.07911).

{"prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.tasks.row_source import RowSource, read_rows
from schoolhouse.types import Completion, Message, Problem, SchoolError, Verdict

Check = Callable[..., bool]
"""A function that gets the reply and the arguments of the instruction, and returns True if the reply follows it."""

OPTIONS = ("holdout", "unknown")
SHAPE = "`prompt` (text), `instruction_id_list` (list) and `kwargs` (list)"


def open_ifeval(path: str, seed: int = 0, **options: str) -> IFEval:
    """Open the task of a file of instructions.

    The option `holdout` is tenth, all or none. The option `unknown=drop` leaves out each row that has an instruction
    without a check. Raises SchoolError if a row cannot be used; the message names the file, the line and the mistake.
    """
    for option in options:
        if option not in OPTIONS:
            raise SchoolError(f"ifeval: unknown option `{option}`{suggest(option, OPTIONS)}")
    unknown = options.pop("unknown", "")
    if unknown not in ("", "drop"):
        raise SchoolError(f"ifeval: option `unknown` is `{unknown}`; it must be `drop`")
    return IFEval(Path(path), seed, drop_unknown=bool(unknown), **options)


class IFEval(DatasetTask):
    """A task with instructions that code checks. The reward is 1 if a reply follows all instructions of its row."""

    in_process = True

    def __init__(self, path: Path, seed: int = 0, holdout: str = "tenth", drop_unknown: bool = False) -> None:
        super().__init__(f"ifeval:{path}", seed, holdout)
        self._problems = _read(path, drop_unknown)
        self.files = RowSource(str(path)).files

    @cached_property
    def all_problems(self) -> list[Problem]:
        """The problems of all rows, in the order of the file."""
        return self._problems

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the text after the thought follows every instruction.

        If the text does not follow every instruction, the reward is 0, and the reason names the instructions that were
        not followed.
        """
        reply = completion.answer.strip()
        info: Mapping[str, Any] = problem.info
        broken = [
            name
            for name, arguments in info["instructions"]
            if not reply or not CHECKS[name](reply, **_with_prompt(name, arguments, problem))
        ]
        share = 1 - len(broken) / len(info["instructions"])
        return Verdict(float(not broken), ", ".join(broken), {"instructions followed": share})


def _with_prompt(name: str, arguments: Mapping[str, Any], problem: Problem) -> Mapping[str, Any]:
    if name == "combination:repeat_prompt" and not arguments.get("prompt_to_repeat"):
        return {**arguments, "prompt_to_repeat": problem.messages[-1].content}
    return arguments


def _read(path: Path, drop_unknown: bool) -> list[Problem]:
    found = (_problem(row.values, row.place, path.stem, drop_unknown) for row in read_rows(str(path), SHAPE))
    problems = [problem for problem in found if problem]
    if not problems:
        raise SchoolError(f"{path} has no rows; add a row with {SHAPE}")
    return problems


def _problem(row: Mapping[str, Any], place: str, source: str, drop_unknown: bool) -> Problem | None:
    names = row.get("instruction_id_list")
    if not isinstance(row.get("prompt"), str) or not isinstance(names, list) or not names:
        raise SchoolError(f"{place}: the row needs {SHAPE}")
    kwargs = row.get("kwargs") or [{}] * len(names)
    mappings = isinstance(kwargs, list) and all(isinstance(one, Mapping | None) for one in kwargs)
    if not mappings or len(kwargs) != len(names):
        raise SchoolError(
            f"{place}: `kwargs` must be a list with one mapping for each of the {len(names)} instructions"
        )
    for name in names:
        if str(name) not in CHECKS:
            if drop_unknown:
                return None
            known = suggest(str(name), sorted(CHECKS))
            raise SchoolError(
                f"{place}: no check for the instruction `{name}`{known}; to leave such rows out, add `?unknown=drop`"
            )
    given = [{key: value for key, value in (one or {}).items() if value is not None} for one in kwargs]
    problem_id = hashlib.blake2b(row["prompt"].encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    info = {"instructions": list(zip(names, given, strict=True))}
    return Problem(problem_id, (Message("user", row["prompt"]),), "", str(names[0]), source, info)


# ---- the checks


def _compare(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if re.search(r"\w", part)])


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\s?\*\*\*\s?", text) if part.strip()]


def _is_json(reply: str) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(reply: str) -> bool:
    parts = [part for part in reply.split("******") if part.strip()]
    return len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _nth_paragraph(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part for part in re.split(r"\n\n", reply) if part.strip()]
    if len(parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    words = _words(parts[nth_paragraph - 1])
    return bool(words) and words[0].casefold() == first_word.casefold()


def _capital_words(reply: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(word.isupper() for word in _words(reply)), capital_relation, capital_frequency)


def _contains_all(reply: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), reply, re.IGNORECASE) for word in keywords)


def _postscript(reply: str, postscript_marker: str) -> bool:
    marker = r"\s*".join(map(re.escape, postscript_marker.replace(" ", "")))
    return bool(re.search(rf"^\s*{marker}.*\S", reply, re.IGNORECASE | re.MULTILINE))


CHECKS: dict[str, Check] = {
    "keywords:existence": _contains_all,
    "keywords:forbidden_words": lambda r, forbidden_words: not any(_occurrences(r, word) for word in forbidden_words),
    "keywords:frequency": lambda r, keyword, frequency, relation: _compare(
        len(re.findall(re.escape(keyword), r, re.IGNORECASE)), relation, frequency
    ),
    "keywords:letter_frequency": lambda r, letter, let_frequency, let_relation: _compare(
        r.casefold().count(letter.casefold()), let_relation, let_frequency
    ),
    "length_constraints:number_words": lambda r, num_words, relation: _compare(len(_words(r)), relation, num_words),
    "length_constraints:number_sentences": lambda r, num_sentences, relation: _compare(
        _sentences(r), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda r, num_paragraphs: len(_paragraphs(r)) == num_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda r, num_placeholders: (
        len(re.findall(r"\[[^\[\]]*\]", r)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda r, num_bullets: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", r, re.MULTILINE)) == num_bullets
    ),
    "detectable_format:number_highlighted_sections": lambda r, num_highlights: (
        len(re.findall(r"\*\*[^\n*]*\S[^\n*]*\*\*|(?<!\*)\*[^\n*]*\S[^\n*]*\*(?!\*)", r)) >= num_highlights
    ),
    "detectable_format:multiple_sections": lambda r, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", r)) >= num_sections
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda r: bool(re.search(r"<<[^\n]*[^\s<>][^\n]*>>", r)),
    "detectable_format:constrained_response": lambda r: any(
        answer in r for answer in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "change_case:english_lowercase": lambda r: r == r.lower(),
    "change_case:english_capital": lambda r: r == r.upper(),
    "change_case:capital_word_frequency": _capital_words,
    "startend:end_checker": lambda r, end_phrase: (
        r.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())
    ),
    "startend:quotation": lambda r: len(r) > 1 and r.startswith('"') and r.endswith('"'),
    "punctuation:no_comma": lambda r: "," not in r,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda r, prompt_to_repeat: (
        r.strip().casefold().startswith(prompt_to_repeat.strip().casefold())
    ),
}
"""Name of an instruction in IFEval -> its check. `language:response_language` has none: it needs a language model."""
