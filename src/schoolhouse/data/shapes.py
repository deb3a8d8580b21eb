"""Finds out what the columns of a row mean. The names of the columns show which public data set has rows of this shape.

`recognize` finds the columns of each role (question, choices, answer, ...). A row is refused if it has a column that
may change the question, but has no role. Names are compared in lower case, with `_` for a space or a hyphen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from schoolhouse.config import suggest
from schoolhouse.data.chats import BadRow, has_user_turn, is_given, parse_chat

Kind = Literal["stored", "problem", "choice", "chat", "completion", "prompt", "code", "constraints"]
"""The kinds of rows. `stored`: a demonstration that a recipe wrote. `problem`: a question with a reference answer.
`choice`: a question with choices. `chat`: turns. `completion`: a prompt with a reply. `prompt`: a prompt alone.
`code`: a question that tests grade. `constraints`: a question whose instructions are checked."""

ROLES = "question context choices correct answer solution thought completion messages system tools family".split()
"""The roles that a user can give to columns, as in `?question=problem&answer=final`."""

_QUESTION = (
    "question problem prompt query instruction question_stem question_text problem_statement question_content goal "
    "sentence ctx inputs input user human"
).split()
_REFERENCE = (
    "reference reward_model.ground_truth ground_truth final_answer expected_answer reference_answer answer_number "
    "final_ans answer correct_answer answers possible_answers answers_spans best_answer gold "
    "gold_answer ideal target targets result"
).split()
_CORRECT = (
    "answerkey answer_key answer_index answer_idx correct_index correct_idx correct_option correct_answer_num cop "
    "correct label gold_index correct_answer best_answer answer gold target"
).split()
_CHOICES = "choices options endings mc1_targets".split()
_CHOICE_COLUMNS = (
    "a b c d e f",
    "opa opb opc opd",
    "option1 option2 option3 option4",
    "option_a option_b option_c option_d option_e",
    "sol1 sol2",
    "choice1 choice2 choice3 choice4",
    "answera answerb answerc",
    "mc_answer1 mc_answer2 mc_answer3 mc_answer4",
    "answer0 answer1 answer2 answer3",
)
_WRONG_CHOICES = (
    "incorrect_answer_1 incorrect_answer_2 incorrect_answer_3",
    "distractor1 distractor2 distractor3",
    "incorrect_answers",
    "distractors",
)
ONE_BASED = ("option1", "mc_answer1", "answera")
"""Groups of columns in which the number of the correct choice counts from 1."""

_CONTEXT = "context body passage article support flores_passage paragraph story contexts".split()
_SOLUTION = (
    "solution rationale generated_solution explanation cot_content exp solutions reasoning chain_of_thought cot "
    "thought thinking reasoning_content"
).split()
_COMPLETION = "completion response output chosen_response assistant gpt".split()
_LONG_ANSWER = 40  # words
_THOUGHT_PAIRS = (
    ("thinking_trajectories", "attempt"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("complex_cot", "response"),
    ("reasoning", "answer"),
    ("reasoning_content", "answer"),
    ("thought", "response"),
    ("thinking", "response"),
    ("reasoning", "response"),
    ("reasoning_content", "response"),
)
_MESSAGES = "messages conversations conversation dialog dialogue chat".split()
_SYSTEM = "system system_prompt system_message".split()
_TOOLS = "tools functions function apis".split()
ALIASES = "aliases answer_aliases".split()

MEDIA = re.compile(r"(image|picture|video|audio|figure|diagram|photo)s?(_\d+)?(_path|_url|_bytes)?")
_CHANGING = {
    *(
        *_CONTEXT,
        *_CHOICES,
        *_SYSTEM,
        *_TOOLS,
        *_QUESTION,
        *_MESSAGES,
        "tool_calls",
        "premise",
        "hypothesis",
        "history",
    ),
    *("table", "tables", "numbers", "nums", "starter_code", "few_shot", "document", "documents", "docs", "background"),
    *("entity_pages", "search_results", "dialogue_history", "chat_template_kwargs", "paragraphs", "passages", "ctxs"),
    *(
        "multiple_choice_targets",
        "evidence",
        "evidences",
        "knowledge",
        "snippets",
        "abstract",
        "schema",
        "theory",
        "scenario",
        "situation",
    ),
}
"""Columns with text that the model needs to know. If such a column has no role, the question is incomplete."""

_COMPLETES_NO_PROMPT = {"numbers", "nums", "starter_code", "few_shot", "schema", "table", "tables"}
"""Columns whose content is already in the text of a `prompt` of TRL or verl. Only a reward function needs them."""

_MARKS = ("label", "is_correct", "correct")
"""Columns that may say that the answer of a row is wrong."""

_REPEATED: set[str] = {*_QUESTION, *_MESSAGES}
"""Columns that may repeat the question, such as `messages` in OpenR1-Math or `prompt` in UltraChat."""

_ROLE_NAMES = (
    *(("choices", _CHOICES), ("system", _SYSTEM), ("tools", _TOOLS), ("question", _QUESTION), ("messages", _MESSAGES)),
)
_CODE = ("test_list", "input_output", "public_test_cases", "private_test_cases", "unit_tests", "tests", "test_cases")
_BY_HAND = "or name the columns yourself: `?question=KEY&answer=KEY`"


class Shape(NamedTuple):
    """The kind of a row, and the columns of each role (question, choices, answer, ...)."""

    kind: Kind
    roles: Mapping[str, tuple[str, ...]]

    def key(self, role: str) -> str:
        """Return the column of a role, or an empty text."""
        return next(iter(self.roles.get(role, ())), "")


def value_at(row: Mapping[str, Any], key: str) -> Any:
    """Return the value of a column, or None. `reward_model.ground_truth` is a key inside the mapping `reward_model`."""
    if key in row:
        return row[key]
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def normalized(key: str) -> str:
    """Return the name of a column in lower case, with `_` between the words."""
    return re.sub(r"[\s-]+", "_", key.strip()).casefold()


class _Columns:
    """The columns of a row by their normalized names, without the ignored columns."""

    def __init__(self, row: Mapping[str, Any], ignored: Sequence[str]) -> None:
        self.row = row
        self.names: dict[str, str] = {}
        for key in row:
            name = normalized(key)
            if key not in ignored and name in self.names and row[key] != row[self.names[name]]:
                raise BadRow(
                    f"the row has the columns `{self.names[name]}` and `{key}`, whose names count as the same; leave "
                    f"one of them out with `?ignore={key}`"
                )
            if key not in ignored:
                self.names[name] = key
        self.given = {name for name, key in self.names.items() if is_given(row[key])}

    def first(self, names: Sequence[str], empty: bool = False) -> str:
        """Return the first of these columns that has a value. With the argument `empty`, a column without a value
        counts too."""
        for name in names:
            if name in self.given or ("." in name and is_given(value_at(self.row, name))):
                return self.names.get(name, name)
        return next((self.names[name] for name in names if empty and name in self.names), "")

    def all(self, names: str) -> tuple[str, ...]:
        """Return the columns of a group that have a value. A single column counts only if it holds a list or a text."""
        found = tuple(self.names[name] for name in names.split() if name in self.given)
        return found if len(found) > 1 or (found and isinstance(self.row[found[0]], list | str)) else ()


def recognize(row: Mapping[str, Any], mapping: Mapping[str, str], ignored: Sequence[str] = ()) -> Shape:
    """Return the shape of a row. Raises BadRow if the row has no known shape; the message says what to do.

    mapping  {role: column} from the user; the columns of these roles are not searched
    ignored  columns that the user leaves out
    """
    columns = _Columns(row, ignored)
    for role, key in mapping.items():
        if value_at(row, key) is None and key not in row:
            raise BadRow(f"the row has no column `{key}`, which is mapped to `{role}`{suggest(key, list(row))}")
    if {"messages", "thought", "response", "reference"} <= row.keys() and not mapping:
        return Shape("stored", {})
    shape = _kind(columns, mapping)
    allowed: set[str] = set()  # a user who names one column wants no other of its kind
    if mapping.keys() & {"question", "messages"}:
        allowed |= _REPEATED
    if mapping.keys() & {"answer", "completion"}:
        allowed |= set(_MARKS)
    _refuse_unused(columns, shape, allowed)
    return shape


def _kind(columns: _Columns, mapping: Mapping[str, str]) -> Shape:
    if not mapping.keys() & {"question", "answer", "completion", "messages"}:
        _refuse_other_uses(columns)
    messages = mapping.get("messages") or ("" if "question" in mapping else columns.first(_MESSAGES))
    question = mapping.get("question") or ("" if "messages" in mapping else columns.first(_QUESTION, empty=True))
    is_code = bool(columns.given & {*_CODE}) or {"test", "entry_point"} <= columns.given
    if is_code and not question:
        question = columns.first(["text", "description"])
    is_prompt = normalized(question) == "prompt"
    thought, completion = _completion(columns, mapping, bool(question))
    reference = _reference(columns, mapping, {question, completion if thought else ""}, is_prompt and not completion)
    solutions = [*_SOLUTION, *(["answer"] if normalized(reference) == "answer_number" else [])]  # as in MGSM
    solution = mapping.get("solution") or columns.first([n for n in solutions if columns.names.get(n) != reference])
    has_reference = is_given(value_at(columns.row, reference)) or bool(solution and not is_prompt)

    roles: dict[str, tuple[str, ...]] = {role: (key,) for role, key in mapping.items()}
    for role, names in (("system", _SYSTEM), ("tools", _TOOLS)):
        roles |= _optional(columns, mapping, role, names)
    if messages and ("messages" in mapping or thought or not (question and has_reference)):
        roles["messages"] = (messages,)
        roles |= _replies(thought, completion if thought or "completion" in mapping else "")
        if reference and not question and "completion" not in roles:
            roles["answer"] = (reference,)
        return Shape("chat", roles)
    if not question:
        names = ", ".join(map(repr, columns.row)) or "none"
        raise BadRow(f"the row has the keys {names}; it needs {FORMATS}, {_BY_HAND}")
    roles["question"] = (question,)
    instruction = normalized(question) in ("instruction", "prompt")  # `input` completes it, as in Alpaca
    roles |= _optional(columns, mapping, "context", [*_CONTEXT, *(["input"] if instruction else [])])
    if "instruction_id_list" in columns.given:
        return Shape("constraints", roles)
    if is_code and "answer" not in mapping and not completion:
        return Shape("code", roles)
    choices, wrong, correct = _choices(columns, mapping)
    if choices:
        roles |= {"choices": choices, "wrong": wrong, "correct": (correct,) if correct else ()}
        return Shape("choice", roles | _optional(columns, mapping, "solution", _SOLUTION))
    roles |= _replies(thought, completion)
    if completion and not is_given(value_at(columns.row, reference)):
        return Shape("completion", roles)
    if reference or (solution and not is_prompt):
        roles |= {"answer": (reference or solution,)} | ({"solution": (solution,)} if solution else {})
        return Shape("problem", roles)
    return Shape("prompt", roles)


def _reference(columns: _Columns, mapping: Mapping[str, str], taken: set[str], solution: bool) -> str:
    """Return the column of the reference answer. With the argument `solution`, the reference answer can be in the
    column `solution`, as in TRL."""
    if "answer" in mapping:
        return mapping["answer"]
    names = [name for name in _REFERENCE if columns.names.get(name) not in taken]
    return columns.first([*names, *(["solution"] if solution else [])]) or columns.first(names, empty=True)


def _replies(thought: str, completion: str) -> dict[str, tuple[str, ...]]:
    found = {"thought": thought, "completion": completion}
    return {role: (key,) for role, key in found.items() if key}


def _optional(
    columns: _Columns, mapping: Mapping[str, str], role: str, names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    key = mapping.get(role) or columns.first(names)
    return {role: (key,)} if key else {}


def _choices(columns: _Columns, mapping: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the columns of all choices, of the wrong choices (if separate), and of the correct choice."""
    correct = mapping.get("correct") or columns.first(_CORRECT, empty=True)
    if "choices" in mapping:
        return (mapping["choices"],), (), correct
    if single := columns.first(_CHOICES):
        return (single,), (), correct
    place = columns.first([name for name in _CORRECT if name not in ("answer", "correct_answer", "best_answer")])
    answers = columns.names.get("answers", "")
    if place and isinstance(columns.row.get(answers), list) and isinstance(columns.row[place], int | str):
        return (answers,), (), place  # as in ReClor
    for group in _CHOICE_COLUMNS:
        if correct and len(found := columns.all(group)) > 1:
            return found, (), correct
    for group in _WRONG_CHOICES:
        right = columns.first(["correct_answer", "best_answer", "answer"])
        if right and (found := columns.all(group)):
            return (right, *found), found, right
    return (), (), ""


def _completion(columns: _Columns, mapping: Mapping[str, str], has_question: bool) -> tuple[str, str]:
    """Return the columns of a thought and of a reply. A short `answer` to a question is a final answer, not a reply."""
    if "completion" in mapping:
        return mapping.get("thought", ""), mapping["completion"]
    for thought, reply in _THOUGHT_PAIRS:
        if thought in columns.given and reply in columns.given:
            key = columns.names[reply]
            if reply == "answer" and (mapping or (has_question and len(str(columns.row[key]).split()) <= _LONG_ANSWER)):
                continue
            return columns.names[thought], key
    return mapping.get("thought", ""), columns.first(_COMPLETION)


FORMATS = "question/answer (as in GSM8K), problem/solution (as in MATH), prompt/reference or messages (a chat)"


def _refuse_other_uses(columns: _Columns) -> None:
    """Raise BadRow if a row was made for another kind of training, such as a preference pair."""
    given, row = columns.given, columns.row
    if {"chosen", "rejected"} <= given:
        whole = has_user_turn(row[columns.names["chosen"]])
        raise BadRow(
            "the row is a preference pair (`chosen`, `rejected`), and no recipe learns from pairs; to train only on "
            f"the chosen replies, add `?{'messages' if whole else 'completion'}={columns.names['chosen']}`"
        )
    if {"prompt", "completion"} <= given and isinstance(row.get(columns.names.get("label", "")), bool):
        raise BadRow(
            "the row has a `label` that calls its `completion` good or bad, and no recipe learns from such labels; "
            "keep only the good rows, and add `?completion=completion`"
        )
    if {"completions", "labels"} <= given or "pre_generated_steps" in given:
        raise BadRow(
            "the row has a label for each step of a solution, which no recipe uses; the recipe `prm` makes its own "
            "labels from a task"
        )
    if {"nums", "target"} <= given and not given & {*_QUESTION}:
        raise BadRow(
            "the row has numbers and a target, but no question; use the task `school:countdown`, or write a question"
        )
    if {"message_id", "parent_id"} <= columns.names.keys():
        raise BadRow("the row is a message of a message tree; write each path of the tree as one row with `messages`")
    if "text" in given and given <= {"text", "id", "meta", "metadata", "url", "source", "timestamp", "title", "date"}:
        if has_user_turn(row[columns.names["text"]]):
            raise BadRow("the row is plain text that contains turns; to read the turns, add `?messages=text`")
        raise BadRow(
            "the row is plain text; pretrain on the file (`school train pretrain --text FILE`), or add `?question=text`"
        )


def _refuse_unused(columns: _Columns, shape: Shape, allowed: set[str]) -> None:
    """Raise BadRow if a column may change the question and has no role. The allowed columns are not checked."""
    used = {key for keys in shape.roles.values() for key in keys}
    changing = _CHANGING | ({"text"} if shape.kind in ("problem", "choice") else set())
    question = "" if shape.kind == "chat" else shape.key("question")
    if normalized(question) == "prompt":
        changing = changing - _COMPLETES_NO_PROMPT
    for name in sorted(columns.given - allowed):
        key = columns.names[name]
        if key in used or any(other.startswith(f"{key}.") for other in used):
            continue
        knowingly = f"leave the column out with `?ignore={key}`"
        if MEDIA.fullmatch(name):
            raise BadRow(f"the row has `{key}`, which a text model cannot read; remove the row, or {knowingly}")
        if name in _MARKS and shape.kind in ("problem", "completion") and columns.row[key] in (True, False):
            raise BadRow(
                f"the row has `{key}`, which may say that the answer is wrong; keep only good rows, and {knowingly}"
            )
        if name not in changing or shape.kind in ("code", "constraints"):
            continue
        if name in _REPEATED and _is_repeated(
            columns.row[key], value_at(columns.row, question or shape.key("messages"))
        ):
            continue
        role = next((role for role, names in _ROLE_NAMES if name in names), "context")
        raise BadRow(
            f"the row has `{key}`, which may change the question and is not used; give it a role (`?{role}={key}`), "
            f"or {knowingly}"
        )


def _is_repeated(value: Any, used: Any) -> bool:
    """Return True if two columns hold the same question: as texts, or as chats with the same first user turn."""
    first, second = _first_user_text(value), _first_user_text(used)
    return bool(first) and bool(second) and (first in second or second in first)


def _first_user_text(value: Any) -> str:
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return " ".join(value.split())
    try:
        messages = parse_chat(value, "messages").messages
    except BadRow:
        return ""
    return next((" ".join(message.content.split()) for message in messages if message.role == "user"), "")
