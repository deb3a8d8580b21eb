"""The workload of a benchmark: a model, prompts and completion lengths, in a folder that every backend reads.

Every completion has a fixed length. So all backends do the same work, even if they sample different tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schoolhouse.algorithms.settings import Lora
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.folder import read_json
from schoolhouse.policy.policy import Policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.atomic_io import atomic_write, resolve_model, to_json
from schoolhouse.types import NAN, Key, Problem, Rollout

MODEL_SIZES = {  # name: hidden_size, num_layers, num_heads, intermediate_size, vocab_size
    "1M": (128, 4, 2, 384, 1024),
    "3M": (192, 6, 3, 576, 2048),
    "10M": (320, 7, 5, 960, 4096),
    "30M": (512, 8, 8, 1536, 4096),
    "100M": (768, 14, 12, 2048, 4096),  # for a GPU
    "nanochat": (384, 6, 6, 1024, 32768),  # runs/runcpu.sh: depth 6, heads of 64, context 512; its MLP is 8 C^2 too
}


@dataclass(frozen=True)
class Workload:
    """The numbers of problems and samples, and the lengths of texts, in one repeat.

    prompt_tokens      the length of the shortest and of the longest prompt.
    completion_tokens  the length of the shortest and of the longest completion.
    batch_size         the number of rows in one update. In the workload `pretrain`, each row has `seq_len` tokens.
    """

    size: str = "3M"
    problems: int = 32
    samples: int = 16
    prompt_tokens: tuple[int, int] = (64, 256)
    completion_tokens: tuple[int, int] = (16, 256)
    batch_size: int = 64
    seq_len: int = 512
    threads: int = 2
    seed: int = 0

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """The token ids of each prompt. The first 16 ids are not used, because they include the special tokens."""
        random = python_random(Key(self.seed, "bench prompts"))
        return [
            [random.randrange(16, vocab_size) for _ in range(random.randint(*self.prompt_tokens))]
            for _ in range(self.problems)
        ]

    def lengths(self) -> list[list[int]]:
        """The number of tokens of each completion [P][G]."""
        random = python_random(Key(self.seed, "bench lengths"))
        return [[random.randint(*self.completion_tokens) for _ in range(self.samples)] for _ in range(self.problems)]

    def rows(self, vocab_size: int) -> list[list[int]]:
        """The rows of an update, in random order. A row is a prompt followed by random ids instead of a completion."""
        random = python_random(Key(self.seed, "bench rows"))
        rows = [
            prompt + [random.randrange(16, vocab_size) for _ in range(length)]
            for prompt, lengths in zip(self.prompts(vocab_size), self.lengths(), strict=True)
            for length in lengths
        ]
        random.shuffle(rows)
        return rows


def prompt_rollouts(prompts: Sequence[Sequence[int]], samples: int) -> list[Rollout]:
    """Repeat each prompt `samples` times. The copies of a prompt are next to each other [P*G]."""
    problems = [Problem(str(p), (), "") for p in range(len(prompts))]
    return [
        Rollout(problem, Key(0, "bench", 0, p, g), tuple(ids), (False,) * len(ids), (NAN,) * len(ids))
        for p, (problem, ids) in enumerate(zip(problems, prompts, strict=True))
        for g in range(samples)
    ]


def row_rollouts(rows: Sequence[Sequence[int]]) -> list[Rollout]:
    """Convert rows to rollouts. The loss includes every token of a rollout."""
    return [
        Rollout(Problem("row", (), ""), Key(0, "bench", 0, i), tuple(row), (True,) * len(row), (NAN,) * len(row))
        for i, row in enumerate(rows)
    ]


def lora_options(work: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument `lora` of `Policy.load` for a workload with LoRA, or no argument for a workload without
    LoRA."""
    rank = work.get("lora_rank")
    return {"lora": Lora(rank=rank, alpha=work["lora_alpha"])} if rank else {}


def model_config(size: str, max_seq_len: int) -> ModelConfig:
    """The Qwen3 config of a model with this size, such as 3M."""
    hidden_size, num_layers, num_heads, intermediate_size, vocab_size = MODEL_SIZES[size]
    return ModelConfig(
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_heads,
        hidden_size // num_heads,
        max_seq_len,
    )


def write_workload(
    work: Workload, folder: Path, options: Mapping[str, object] | None = None, model: Path | None = None
) -> None:
    """Write model/ (random weights in Hugging Face format) and work.json. `options` has additional keys for work.json.

    If `model` is the folder of a model, model/ is a link to this folder.
    """
    if model is None:
        config = model_config(work.size, max(work.prompt_tokens[1] + work.completion_tokens[1] + 64, work.seq_len))
        conversation = Conversation(_tokenizer(work.seed, min(config.vocab_size, 4096)))
        Policy.create(config, conversation, work.seed).save(folder / "model")
        shape = {"hidden_size": config.hidden_size, "num_layers": config.num_hidden_layers}
        shape["vocab_size"] = config.vocab_size
    else:
        model = resolve_model(model).resolve()
        (folder / "model").symlink_to(model, target_is_directory=True)
        conversation, config_json = Conversation.load(model), read_json(model / "config.json")
        shape = {"vocab_size": config_json.get("vocab_size")}
    ordinary = _ordinary_ids(conversation.tokenizer)
    size = len(ordinary)
    spec = {
        **asdict(work),
        **shape,
        "prompts": [[ordinary[i] for i in prompt] for prompt in work.prompts(size)],
        "lengths": work.lengths(),
        "rows": [[ordinary[i] for i in row] for row in work.rows(size)],
        "stop_ids": list(conversation.stop_ids),
        "pad_id": conversation.tokenizer.pad_id,
        **(options or {}),
    }
    atomic_write(folder / "work.json", to_json(spec) + "\n")


def _ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a tokenizer in order. Each special id is replaced by an ordinary id."""
    special = set(tokenizer.special_tokens.values())
    ids = sorted(set(tokenizer.vocab.values()))
    ordinary = [token for token in ids if token not in special]
    return [ordinary[0] if token in special else token for token in ids]


def _tokenizer(seed: int, size: int) -> Tokenizer:
    random = python_random(Key(seed, "bench words"))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["".join(random.choice(letters) for _ in range(random.randint(2, 7))) for _ in range(20_000)]
    return train_tokenizer([" ".join(words)], size)
