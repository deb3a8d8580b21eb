"""The options of a server. This file imports no large packages, so that `school serve --help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from schoolhouse.config import BaseConfig
from schoolhouse.data.chat_settings import ChatConfig


class Adapters(BaseConfig):
    """LoRA adapters of the served model. Each key is the name of an adapter in requests, and each value is its
    folder."""

    model_config = ConfigDict(extra="allow")
    keys_are_names = True

    @property
    def folders(self) -> dict[str, Path]:
        return {name: Path(str(folder)) for name, folder in (self.model_extra or {}).items()}


class ServerConfig(ChatConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    adapters: Adapters = Adapters()
    """LoRA adapters of this model: --adapters.NAME FOLDER. A request chooses an adapter by its name."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = Field(8000, ge=1, le=65535)
    served_model_name: str = ""
    """The model's name in requests; empty: the folder's name."""
    api_key: str = ""
    """API key that clients must send; empty: the environment variable SCHOOLHOUSE_API_KEY, or no key if it is unset."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of other pages that may send requests, such as http://localhost:3000."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests can use for the server, such as models.example.org; * allows all names."""
    max_num_seqs: int = Field(64, gt=0)
    """Limit of the completions that are sampled together."""
    max_queued_seqs: int = Field(256, ge=0)
    """Limit of the completions that wait in the queue."""
    max_model_len: int | None = Field(None, gt=0)
    """Limit of the tokens of a prompt and its completion; default: the context length of the model, or a smaller number
    if memory is small."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number type of the model's weights. auto: the same type as in training. On a CPU, bfloat16 and int8 make a few
    answers at a time faster, but the answers are less exact."""
    timeout: float = Field(600.0, gt=0)
    """Seconds until a request fails."""
    task: str = ""
    """Task whose rules are used by searches and rewards, such as its step delimiter. Empty: steps are as in the run of
    the reward model, or each line is a step."""
    reward_model: Path | None = None
    """Folder of a reward model, or of its run. The model grades answers; searches use it with `values=reward_model`."""
    label_places: Literal["steps", "end", ""] = ""
    """Where the reward model expects its label tokens: after each step, or at the end of a solution. Empty: as in its
    run, or after each step."""
    votes: Path = Path("votes.jsonl")
    """File for the votes of the arena."""
    seed: int = 0
