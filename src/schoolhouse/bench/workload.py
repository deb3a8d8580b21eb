"""What is measured: a model, prompts and answer lengths, written to a folder that every contender reads.

Lengths are imposed (a contender may not end earlier or later), so that all do the same work whatever they draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.model.decoder import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.atomic_io import atomic_write, to_json
from schoolhouse.types import NAN, Key, Problem, Rollout

SHAPES = {  # name: width, layers, heads, inner, vocabulary
    "1M": (128, 4, 2, 384, 1024),
    "3M": (192, 6, 3, 576, 2048),
    "10M": (320, 7, 5, 960, 4096),
    "30M": (512, 8, 8, 1536, 4096),
    "100M": (768, 14, 12, 2048, 4096),  # for a GPU
    "nanochat": (384, 6, 6, 1024, 32768),  # runs/runcpu.sh: depth 6, heads of 64, context 512; its MLP is 8 C^2 too
}


@dataclass(frozen=True)
class Work:
    """Problems, samples and lengths of one repetition."""

    size: str = "3M"
    problems: int = 32
    samples: int = 16
    prompt: tuple[int, int] = (64, 256)
    """Shortest and longest prompt, tokens."""
    answer: tuple[int, int] = (16, 256)
    """Shortest and longest answer, tokens."""
    batch: int = 64
    """Rows of one update (learner), all of `context` tokens (pretrain)."""
    context: int = 512
    threads: int = 2
    seed: int = 0

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Ids of each prompt; the first 16 ids, where special tokens live, are not used."""
        draw = python_random(Key(self.seed, "bench prompts"))
        return [
            [draw.randrange(16, vocabulary) for _ in range(draw.randint(*self.prompt))] for _ in range(self.problems)
        ]

    def lengths(self) -> list[list[int]]:
        """Tokens of each answer, [P][G]."""
        draw = python_random(Key(self.seed, "bench lengths"))
        return [[draw.randint(*self.answer) for _ in range(self.samples)] for _ in range(self.problems)]

    def rows(self, vocabulary: int) -> list[list[int]]:
        """Every prompt with every answer of its length, in no order: rows of mixed length to learn from."""
        draw = python_random(Key(self.seed, "bench rows"))
        rows = [
            prompt + [draw.randrange(16, vocabulary) for _ in range(length)]
            for prompt, wanted in zip(self.prompts(vocabulary), self.lengths(), strict=True)
            for length in wanted
        ]
        draw.shuffle(rows)
        return rows


def asked(prompts: Sequence[Sequence[int]], samples: int) -> list[Rollout]:
    """`samples` prefixes of each prompt, nothing said yet: those of a prompt side by side."""
    problems = [Problem(str(p), (), "") for p in range(len(prompts))]
    return [
        Rollout(problem, Key(0, "bench", 0, p, g), tuple(ids), (False,) * len(ids), (NAN,) * len(ids))
        for p, (problem, ids) in enumerate(zip(problems, prompts, strict=True))
        for g in range(samples)
    ]


def told(rows: Sequence[Sequence[int]]) -> list[Rollout]:
    """Rows of text as rollouts that somebody wrote from the first token to the last."""
    return [
        Rollout(Problem("row", (), ""), Key(0, "bench", 0, i), tuple(row), (True,) * len(row), (NAN,) * len(row))
        for i, row in enumerate(rows)
    ]


def shape_of(size: str, longest: int) -> ModelConfig:
    """The Qwen3 shape of a size's name."""
    width, layers, heads, inner, vocabulary = SHAPES[size]
    return ModelConfig(vocabulary, width, inner, layers, heads, heads, width // heads, longest)


def write(work: Work, folder: Path, options: Mapping[str, object] | None = None) -> None:
    """Write model/ (random weights, Hugging Face format) and work.json; `options` are for the peer to read."""
    shape = shape_of(work.size, max(work.prompt[1] + work.answer[1] + 64, work.context))
    conversation = Conversation(_tokenizer(work.seed, min(shape.vocab_size, 4096)))
    Policy.create(shape, conversation, work.seed).save(folder / "model")
    size = conversation.tokenizer.vocab_size
    spec = {
        **asdict(work),
        "width": shape.hidden_size,
        "layers": shape.num_hidden_layers,
        "vocabulary": shape.vocab_size,
        "prompts": work.prompts(size),
        "lengths": work.lengths(),
        "rows": work.rows(size),
        "ends": list(conversation.stop_ids),
        "pad": conversation.tokenizer.pad_id,
        **(options or {}),
    }
    atomic_write(folder / "work.json", to_json(spec) + "\n")


def _tokenizer(seed: int, size: int) -> Tokenizer:
    draw = python_random(Key(seed, "bench words"))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["".join(draw.choice(letters) for _ in range(draw.randint(2, 7))) for _ in range(20_000)]
    return train_tokenizer([" ".join(words)], size)
