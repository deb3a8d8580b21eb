"""`school data`: columns, examples as the model sees them, tokens, mistakes; and lists of dropped rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.cli.main import main
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer

CHAT = [
    {"role": "user", "content": "one apple"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "three"},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: Any) -> str:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return name


def output(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(list(words)) == status
    captured = capsys.readouterr()
    return captured.out + captured.err


def model_folder(context: int = 100) -> str:
    folder = Path("model")
    folder.mkdir()
    Conversation(train_tokenizer(["one apple and two apples"] * 4, 290)).save(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    return str(folder)


def test_columns_have_their_roles(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": f"{n}?", "answer": n, "level": "easy", "choices": None} for n in range(4)]
    lines = output(capsys, "data", write("a.jsonl", *rows), "--show", "1").splitlines()
    assert lines[0] == "a.jsonl: 4 rows, 4 can be read"
    assert [" ".join(line.split()) for line in lines[lines.index("columns") + 1 :][:4]] == [
        "problem question text 100% of rows",
        "answer answer number 100% of rows",
        "level not used text 100% of rows",
        "choices not used empty 0% of rows",
    ]
    assert lines[-3:] == ["example 1 (a.jsonl:1)", "  user: 0?", "  reference: 0"]


def test_a_key_inside_a_mapping_is_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"style": "rule", "ground_truth": "18"}}
    assert "reward_model.ground_truth  answer" in output(capsys, "data", write("a.jsonl", row))


def test_mistakes_and_repeats_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "q", "answer": "1"}] * 3 + ["nope"] * 7 + [{"question": "r", "answer": ""}]
    text = output(capsys, "data", write("a.jsonl", *rows))
    assert "2 rows repeat the prompt of an earlier row" in text
    assert "7 rows cannot be read\n  a.jsonl:4: not JSON" in text
    assert "a.jsonl:8: not JSON" in text
    assert "a.jsonl:9" not in text
    assert "1 rows have no usable answer and no reply" in text
    assert "a.jsonl:11: `answer` is empty" in text


def test_examples_are_shown_in_the_template_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    model, chats = model_folder(), write("chats.jsonl", {"messages": CHAT})
    text = output(capsys, "data", chats, "--model", model)
    assert text.count("loss    |") == 1
    assert "context | '<|im_start|>user\\none apple<|im_end|>" in text
    assert "loss    | '<think></think>three<|im_end|>'" in text
    assert output(capsys, "data", chats, "--model", model, "--loss_on", "all").count("loss    |") == 2


def test_tokens_of_the_rows_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_folder()
    chats = write(
        "chats.jsonl", {"messages": CHAT[:2]}, {"messages": [CHAT[0], {"role": "assistant", "content": "x" * 99}]}
    )
    line = output(capsys, "data", chats, "--model", model).splitlines()[-1]
    assert line.startswith("tokens per row: mean ")
    assert line.endswith("1 rows are longer than the context of 100")


def test_a_chat_that_ends_with_a_user_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "data", write("chats.jsonl", {"messages": CHAT[:3]}))
    assert "1 chats end with turns of a user; `sft` leaves these turns out" in text


def test_the_first_rows_alone_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.jsonl", {"question": "q", "answer": "1"}, {"question": "r", "answer": "1"}, "nope")
    assert "a.jsonl: 2 rows, 2 can be read (the first rows only)" in output(capsys, "data", path, "--limit", "2")


def test_columns_are_mapped_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.jsonl", {"ask": "q", "final": "1"})
    assert "it needs question/answer" in output(capsys, "data", path)
    assert "reference: 1" in output(capsys, "data", f"{path}?question=ask&answer=final")
    assert "unknown option `anser`; did you mean `answer`?" in output(capsys, "data", f"{path}?anser=final", status=2)


# ---- lists of dropped rows

ROWS = [
    {"question": "6 times 3?", "answer": "18"},
    {"question": "6 times 4?", "answer": ""},
    "nope",
    {"question": "6 times 5?", "answer": "30"},
]


def test_bad_rows_are_listed_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.jsonl", *ROWS)
    assert "2 of 4 rows cannot be used" in output(capsys, "task", f"jsonl:{path}", "--check", status=2)
    text = output(capsys, "task", f"jsonl:{path}?holdout=none", "--check", "--drop", "lists/dropped.jsonl")
    assert "2 of 2 references correct" in text
    assert "listed in lists/dropped.jsonl: 2 rows that cannot be read, 0 that fail the check" in text
    (spec,) = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("leave them out with: ")]
    assert spec == "jsonl:a.jsonl?holdout=none&drop=lists/dropped.jsonl"
    assert [json.loads(line)["place"] for line in Path("lists/dropped.jsonl").read_text().splitlines()] == [
        "a.jsonl:2",
        "a.jsonl:3",
    ]
    assert "2 of 2 references correct" in output(capsys, "task", spec, "--check")


def test_rows_that_fail_the_check_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.jsonl", {"question": "6 times 3?", "answer": "18"}, {"question": "No number?", "answer": "zzz"})
    assert "gave a wrong grade to 1 answers" in output(capsys, "task", f"jsonl:{path}", "--check", status=2)
    text = output(capsys, "task", f"jsonl:{path}", "--check", "--drop", "dropped.jsonl")
    assert "0 rows that cannot be read, 1 that fail the check" in text
    assert "1 of 1 references correct" in output(capsys, "task", f"jsonl:{path}?drop=dropped.jsonl", "--check")


def test_a_list_is_written_for_a_reward_function(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def f(completions, reference): return [float(completions[0] == reference[0])]")
    path = write("a.jsonl", {"prompt": "a", "reference": "1"}, {"promt": "b"})
    text = output(capsys, "task", f"python:mine.py:f?data={path}", "--check", "--drop", "dropped.jsonl")
    assert "1 rows that cannot be read" in text
    assert "leave them out with: python:mine.py:f?data=a.jsonl&drop=dropped.jsonl" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jsonl:a.jsonl", "--drop", "x.jsonl"], "--drop needs the option --check"),
        (["jsonl:a.jsonl", "--check", "--drop", "a.jsonl"], "a.jsonl is not a list of dropped rows"),
        (["school", "--check", "--drop", "x.jsonl"], "the task `school` has no data file"),
        (["jsonl:a.jsonl?drop=y.jsonl", "--check", "--drop", "x.jsonl"], "remove `drop=y.jsonl` from the task"),
    ],
)
def test_a_list_that_cannot_be_written_is_an_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.jsonl", *ROWS)
    assert message in output(capsys, "task", *words, status=2)
    assert Path("a.jsonl").read_text().startswith('{"question": "6 times 3?"')


def test_chats_are_checked_without_grading(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "task", f"jsonl:{write('chats.jsonl', {'messages': CHAT})}", "--check")
    assert text == "read 1 rows with replies; the rows have no answers to grade\n"
