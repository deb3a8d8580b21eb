"""The file of votes: each line is read once, and a damaged line does no harm."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from schoolhouse.serve import chat_page
from schoolhouse.serve.chat_page import Vote, VoteFile, add_arena

VOTE = {"left": "a", "right": "b", "winner": "left"}
LINE = '{"left": "a", "right": "b", "winner": "tie"}\n'


def test_a_vote_is_counted_and_stored(tmp_path: Path):
    app = FastAPI()
    add_arena(app, tmp_path / "votes.jsonl")
    client = TestClient(app)
    assert client.get("/api/leaderboard").json() == []
    assert [client.post("/api/votes", json=VOTE).json()["votes"] for _ in range(2)] == [1, 2]
    assert [row["name"] for row in client.get("/api/leaderboard").json()] == ["a", "b"]
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 2


def test_each_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "votes.jsonl").write_text(LINE * 3)
    read: list[bytes] = []
    parse = chat_page._battle
    monkeypatch.setattr(chat_page, "_battle", lambda line: read.append(line) or parse(line))
    file = VoteFile(tmp_path / "votes.jsonl")
    assert [file.append(Vote.model_validate(VOTE)) for _ in range(4)] == [4, 5, 6, 7]
    assert len(read) == 7


def test_lines_of_another_program_are_read(tmp_path: Path):
    file = VoteFile(tmp_path / "votes.jsonl")
    file.append(Vote.model_validate(VOTE))
    with file.path.open("a") as other:
        other.write(LINE)
    assert [battle.winner for battle in file.read()] == ["left", "tie"]
    file.path.write_text(LINE)
    assert [battle.winner for battle in file.read()] == ["tie"]
    file.path.unlink()
    assert list(file.read()) == []


def test_damaged_lines_are_skipped_and_a_cut_line_is_ended(tmp_path: Path):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(LINE.encode() + b"\xff\n{}\n[1]\n" + b'{"left": "\\ud800", "right": "b", "winner": "tie"}\n{"lef')
    file = VoteFile(path)
    assert len(file.read()) == 1
    assert file.append(Vote.model_validate(VOTE)) == 2


def test_only_the_newest_votes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_page, "MAX_VOTES", 2)
    (tmp_path / "votes.jsonl").write_text(LINE * 3)
    file = VoteFile(tmp_path / "votes.jsonl")
    file.append(Vote.model_validate(VOTE))
    assert [battle.winner for battle in file.read()] == ["tie", "left"]
