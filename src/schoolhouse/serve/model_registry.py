"""The models that a server can be asked for: the one it was started with, and every checkpoint beside it.

A checkpoint of a run that is still training appears as soon as it is complete. A model is loaded when it is first asked
for; the few that were asked last stay loaded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path

from schoolhouse.policy.policy import Policy
from schoolhouse.runs.atomic_io import list_checkpoints
from schoolhouse.serve.api_schema import Unfit
from schoolhouse.serve.batch_engine import Desk
from schoolhouse.serve.settings import Serve

KEPT = 3


class Shelf:
    """Names of models, and a desk for each that is loaded. Never reads outside the folder it was given."""

    def __init__(self, c: Serve) -> None:
        self.c = c
        self.name = c.name or c.model.resolve().name
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._loading = asyncio.Lock()
        self.first = self._load(self.name)

    def places(self) -> dict[str, Path]:
        """Name -> folder, the server's own first: `NAME@000045` is a checkpoint of the run that was given."""
        folder = self.c.model
        found = {self.name: folder}
        for run in sorted({path.parent for path in folder.glob("**/checkpoints")}) if folder.is_dir() else []:
            inside = str(run.relative_to(folder))
            base = self.name if inside == "." else f"{self.name}/{inside}"
            found |= {f"{base}@{checkpoint.name}": checkpoint for checkpoint in list_checkpoints(run / "checkpoints")}
        return found

    @property
    def desks(self) -> list[Desk]:
        return list(self._desks.values())

    async def desk(self, name: str) -> Desk:
        """The desk of a model, loaded first if need be. Raises Unfit for a name that is not there."""
        if name not in self._desks:
            async with self._loading:
                if name not in self._desks:
                    await asyncio.to_thread(self._load, name)
                    await self._make_room(name)
        self._desks.move_to_end(name)
        return self._desks[name]

    def _load(self, name: str) -> Desk:
        places = self.places()
        if name not in places:
            known = ", ".join(f"`{one}`" for one in places)
            raise Unfit(f"there is no model `{name}` here; this server has {known}", "model", "model_not_found", 404)
        desk = Desk(lambda: Policy.load(places[name]), self.c.slots, self.c.queue, self.c.context)
        self._desks[name] = desk
        return desk

    async def _make_room(self, newest: str) -> None:
        """Close what was not asked for longest and nobody waits for. The server's own model always stays."""
        idle = [
            n for n, desk in self._desks.items() if n not in (newest, self.name) and not desk.running + desk.waiting
        ]
        for name in idle[: max(0, len(self._desks) - KEPT)]:
            await asyncio.to_thread(self._desks.pop(name).close)

    def close(self) -> None:
        for desk in self.desks:
            desk.close()
