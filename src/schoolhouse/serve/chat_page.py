"""The page that talks, and its local leaderboard: who compares two models blindly leaves a line in a file."""

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
from schoolhouse.serve.api_schema import sound
from schoolhouse.web import PAGES

MOST_DUELS = 100_000


class Vote(BaseModel):
    """Which of two answers somebody liked better, before being told whose they were."""

    model_config = ConfigDict(extra="forbid")
    left: Annotated[str, Field(min_length=1, max_length=300)]
    right: Annotated[str, Field(min_length=1, max_length=300)]
    winner: Literal["left", "right", "tie"]
    question: Annotated[str, Field(max_length=20_000)] = ""
    _sound = model_validator(mode="before")(sound)


def add_page(app: FastAPI) -> None:
    """The page and its parts."""

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGES / "chat.html")

    app.mount("/web", StaticFiles(directory=PAGES), name="web")


def add_votes(app: FastAPI, votes: Path) -> None:
    """What people chose on the page, kept in a file, and what follows from it."""
    writing = asyncio.Lock()

    @app.get("/api/leaderboard")
    async def standings() -> list[dict[str, Any]]:
        """Strengths of the models that were compared, with 95 % intervals."""
        return [standing._asdict() for standing in await asyncio.to_thread(leaderboard, _duels(votes))]

    @app.post("/api/votes")
    async def vote(vote: Vote) -> dict[str, int]:
        """One more line in the file of votes."""
        async with writing:
            with votes.open("a", encoding="utf-8") as file:
                file.write(to_json(vote.model_dump()) + "\n")
        return {"votes": len(_duels(votes))}


def _duels(path: Path) -> list[Battle]:
    """Votes in the file; lines that are none are left out."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-MOST_DUELS:]:
            try:
                told = Vote.model_validate(json.loads(line))
            except ValueError:
                continue
            found.append(Battle(told.left, told.right, told.winner))
    return found
