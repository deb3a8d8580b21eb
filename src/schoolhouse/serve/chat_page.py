"""The chat page and its arena, in which users vote for the better one of two models.

The server stores the votes in a file, and makes a leaderboard from the file.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schoolhouse.eval.arena import Battle, leaderboard
from schoolhouse.runs.atomic_io import to_json
from schoolhouse.serve.api_schema import reject_surrogates
from schoolhouse.web import PAGES

MAX_VOTES = 100_000  # a leaderboard is made from at most this many votes, the newest ones


class Vote(BaseModel):
    """A vote for the better of two answers. The names of the two models are hidden until the vote."""

    model_config = ConfigDict(extra="forbid")
    left: Annotated[str, Field(min_length=1, max_length=300)]
    right: Annotated[str, Field(min_length=1, max_length=300)]
    winner: Literal["left", "right", "tie"]
    question: Annotated[str, Field(max_length=20_000)] = ""
    _valid_unicode = model_validator(mode="before")(reject_surrogates)


def add_page(app: FastAPI) -> None:
    """Add the chat page and its static files to an app."""

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGES / "chat.html")

    app.mount("/web", StaticFiles(directory=PAGES), name="web")


def add_arena(app: FastAPI, votes: Path) -> None:
    """Add two routes to an app: one route returns a leaderboard of the votes, the other route stores a new vote."""
    writing = asyncio.Lock()

    @app.get("/api/leaderboard")
    async def get_leaderboard() -> list[dict[str, Any]]:
        """Return the ratings of the models that were compared, with 95 % confidence intervals."""
        return [standing._asdict() for standing in await asyncio.to_thread(leaderboard, _read_votes(votes))]

    @app.post("/api/votes")
    async def add_vote(vote: Vote) -> dict[str, int]:
        """Append one vote to the file of votes."""
        async with writing:
            with votes.open("a", encoding="utf-8") as file:
                file.write(to_json(vote.model_dump()) + "\n")
        return {"votes": len(_read_votes(votes))}


def _read_votes(path: Path) -> list[Battle]:
    """Read the votes in the file. Invalid lines are skipped."""
    votes = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-MAX_VOTES:]:
            try:
                vote = Vote.model_validate(json.loads(line))
            except ValueError:
                continue
            votes.append(Battle(vote.left, vote.right, vote.winner))
    return votes
