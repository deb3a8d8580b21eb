"""The chat page and its arena, in which users see the answers of two models and vote for the better answer.

The server stores the votes in a file, and makes a leaderboard from the file.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import Field

from schoolhouse.eval.arena import Battle, leaderboard
from schoolhouse.runs.atomic_io import to_json
from schoolhouse.serve.request_fields import BodyError, RequestModel, read_json
from schoolhouse.web import PAGES

MAX_VOTES = 100_000  # a leaderboard is made from at most this many votes, the newest ones


class Vote(RequestModel):
    """A vote for the better of two answers. The names of the two models are hidden until the vote."""

    left: Annotated[str, Field(min_length=1, max_length=300)]
    right: Annotated[str, Field(min_length=1, max_length=300)]
    winner: Literal["left", "right", "tie"]
    question: Annotated[str, Field(max_length=20_000)] = ""


def add_page(app: FastAPI) -> None:
    """Add the chat page and its static files to an app."""

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGES / "chat.html")

    app.mount("/web", StaticFiles(directory=PAGES), name="web")


def add_arena(app: FastAPI, votes: Path) -> None:
    """Add two routes to an app: one route returns a leaderboard of the votes, the other route stores a new vote."""
    file, lock, rating = VoteFile(votes), asyncio.Lock(), asyncio.Lock()
    ratings: dict[tuple[int, int], list[dict[str, Any]]] = {}  # of the newest state of the file

    @app.get("/api/leaderboard")
    async def get_leaderboard() -> list[dict[str, Any]]:
        """Return the ratings of the models that were compared, with 95 % confidence intervals."""
        async with rating:  # only one computation at a time, and votes do not wait for it
            async with lock:
                battles, state = list(await asyncio.to_thread(file.read)), file.state
            if state not in ratings:
                standings = await asyncio.to_thread(leaderboard, battles)
                ratings.clear()
                ratings[state] = [standing._asdict() for standing in standings]
            return ratings[state]

    @app.post("/api/votes")
    async def add_vote(vote: Vote) -> dict[str, int]:
        """Append one vote to the file of votes."""
        async with lock:
            return {"votes": await asyncio.to_thread(file.append, vote)}


class VoteFile:
    """The votes in a file. The server reads each line of the file only once, even if another program appends lines.

    `state` has two numbers: the inode number of the file, and the number of bytes that the server has read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, (0, 0)
        self._battles: deque[Battle] = deque(maxlen=MAX_VOTES)

    def read(self) -> Collection[Battle]:
        """Return the newest votes, at most `MAX_VOTES`. The method skips invalid lines and an incomplete last line."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                number, start = self.state
                if found.st_ino != number or found.st_size < start:
                    start = 0  # another file, or a shortened one
                    self._battles.clear()
                file.seek(start)
                lines = file.read()
                end = lines.rfind(b"\n") + 1
                self.state = (found.st_ino, start + end)
                self._battles.extend(filter(None, map(_battle, lines[:end].splitlines())))
        except FileNotFoundError:
            self.state = (0, 0)
            self._battles.clear()
        return self._battles

    def append(self, vote: Vote) -> int:
        """Append a vote to the file. Returns the number of votes in the file, but at most `MAX_VOTES`."""
        with self.path.open("ab+") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
            separator = b"\n" if size and file.read(1) != b"\n" else b""
            file.write(separator + to_json(vote.model_dump()).encode() + b"\n")
        return len(self.read())


def _battle(line: bytes) -> Battle | None:
    """Return the vote in a line of the file of votes, or None if the line is invalid."""
    try:
        vote = Vote.model_validate(read_json(line))
    except (BodyError, ValueError):
        return None
    return Battle(vote.left, vote.right, vote.winner)
