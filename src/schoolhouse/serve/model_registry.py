"""The models of a server: the model with which the server was started, and every checkpoint below the model's folder.

A server can also have LoRA adapters of its model (`--adapters.NAME FOLDER`). The adapters share the weights of the
model.

If a run is still training, each new checkpoint is listed as soon as the checkpoint is complete. A model is loaded at
the first request for this model. The most recently used models stay loaded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path

from schoolhouse.model.lora import share_base
from schoolhouse.policy.policy import Policy
from schoolhouse.runs.adapter_folder import base_folder, base_name, is_adapter
from schoolhouse.runs.atomic_io import list_checkpoints, resolve_model
from schoolhouse.serve.api_schema import InvalidRequest
from schoolhouse.serve.batch_engine import BatchEngine
from schoolhouse.serve.prompts import longest_token
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.types import SchoolError

MAX_LOADED = 3


class ModelRegistry:
    """A registry with the names of all models of a server, and with an engine for each loaded model.

    The registry reads only files in the folders with which the server was started.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.default_name = config.served_model_name or config.model.resolve().name
        self._engines: OrderedDict[str, BatchEngine] = OrderedDict()
        self._loading = asyncio.Lock()
        for name, folder in config.adapters.folders.items():
            self._check_adapter(name, folder)
        self.default_engine = self._load(self.default_name)

    def folders(self) -> dict[str, Path]:
        """The folder of each model name. The first name is the default model.

        A name such as `NAME@000045` means a checkpoint of the run in the server's folder.
        """
        root = self.config.model
        found = {self.default_name: root, **self.config.adapters.folders}
        for run in sorted({path.parent for path in root.glob("**/checkpoints")}) if root.is_dir() else []:
            inside = str(run.relative_to(root))
            base = self.default_name if inside == "." else f"{self.default_name}/{inside}"
            found |= {f"{base}@{checkpoint.name}": checkpoint for checkpoint in list_checkpoints(run / "checkpoints")}
        return found

    def _check_adapter(self, name: str, folder: Path) -> None:
        """Raise SchoolError if the adapter called `name` is not an adapter of the served model."""
        base = base_folder(resolve_model(self.config.model))
        if name == self.default_name:
            raise SchoolError(f"--adapters.{name} has the name of the served model: give the adapter another name")
        if not resolve_model(folder).is_dir():
            raise SchoolError(
                f"--adapters.{name} {folder} is not a folder: give the folder of an adapter, or of its run"
            )
        if not is_adapter(resolve_model(folder)):
            raise SchoolError(
                f"--adapters.{name} {folder} is not a LoRA adapter: serve the model with `school serve {folder}`"
            )
        if not base_folder(resolve_model(folder)).samefile(base):
            other = base_name(resolve_model(folder))
            raise SchoolError(
                f"--adapters.{name} {folder} is an adapter of {other}, but the model of this server is {base}: serve "
                "the adapter in another process"
            )

    @property
    def engines(self) -> list[BatchEngine]:
        return list(self._engines.values())

    async def engine(self, name: str) -> BatchEngine:
        """Return the engine of a model, and load the model if necessary. Raises InvalidRequest for an unknown name."""
        if name not in self._engines:
            async with self._loading:
                if name not in self._engines:
                    await asyncio.to_thread(self._load, name)
                    await self._unload_idle(name)
        self._engines.move_to_end(name)
        return self._engines[name]

    def _load(self, name: str) -> BatchEngine:
        folders, config = self.folders(), self.config
        if name not in folders:
            known = ", ".join(f"`{other}`" for other in folders)
            raise InvalidRequest(f"unknown model `{name}`; choose one of {known}", "model", "model_not_found", 404)

        def load() -> Policy:
            policy = Policy.load(folders[name], chat=config)
            policy.sampling_weights = config.weights
            if name in config.adapters.folders:
                share_base(policy.decoder, self.default_engine.policy.decoder)
            return policy

        engine = BatchEngine(
            load,
            config.max_num_seqs,
            config.max_queued_seqs,
            config.max_model_len,
            reserved=sum(other.room.reserved for other in self.engines),
        )
        longest_token(engine.policy.conversation.tokenizer)  # the first call takes a while for a large vocabulary
        self._engines[name] = engine
        return engine

    async def _unload_idle(self, newest: str) -> None:
        """Close idle engines until at most `MAX_LOADED` models are loaded. The least recently used engine is closed
        first. The default model stays loaded."""
        idle = [
            name
            for name, engine in self._engines.items()
            if name not in (newest, self.default_name) and not engine.running + engine.waiting
        ]
        for name in idle[: max(0, len(self._engines) - MAX_LOADED)]:
            await asyncio.to_thread(self._engines.pop(name).close)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
