"""Pretraining: the likelihood of text, and the tokenizer it is read with.

Text is a file of the user's own or the textbook of a task (`exposition`, written on demand from the seed). What a part
of it that training never sees costs is reported in bits per byte, which no choice of tokenizer can flatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from schoolhouse.config import Frozen
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.decoder import Shape
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import Task, open_task
from schoolhouse.text.conversation import Conversation
from schoolhouse.text.corpus import bits_per_byte, chunks, stream, text_file, text_rollouts, token_stream
from schoolhouse.text.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.types import Key, Precision, SchoolError

_SAMPLE, _HELD_OUT = 2000, 1_000_003  # pages the tokenizer is trained on; the step whose pages are set aside


class Model(Frozen):
    """A Qwen3-shaped decoder."""

    width: int = Field(128, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    key_heads: int = Field(4, gt=0)
    head_dim: int = Field(32, gt=0, multiple_of=2)
    inner: int = Field(384, gt=0)
    """Width inside the MLP."""
    longest: int = Field(1024, gt=0)
    """The longest sequence it will read."""

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of key_heads {self.key_heads}: change one of them")
        return self

    def shape(self, vocabulary: int) -> Shape:
        sizes = (vocabulary, self.width, self.inner, self.layers, self.heads, self.key_heads, self.head_dim)
        return Shape(*sizes, max_position_embeddings=self.longest)


class Config(Frozen):
    text: Path | None = None
    """A .txt or .jsonl file (or either as .gz) to learn from."""
    task: str | None = None
    """Or a task with a textbook: school[:families]."""
    tokenizer: Path | None = None
    """Folder of a tokenizer to use; without it one is trained on the text."""
    vocabulary: int = Field(1024, ge=262)
    seed: int = 0
    model: Model = Model()
    steps: int = Field(1000, gt=0)
    batch: int = Field(32, gt=0)
    """Rows per update."""
    worked: int = Field(0, ge=0)
    """Worked examples of the task beside the rows of each update, as base models of today have read many."""
    context: int = Field(128, gt=1)
    """Tokens of a row."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of a text file that training never sees."""
    learning_rate: float = Field(3e-3, gt=0)
    warmup: int = Field(20, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    recompute: bool = False
    """Activation checkpointing: a second forward pass for less memory, the same result."""
    test_every: int = Field(250, gt=0)
    """Measure bits per byte every so many steps (and after the last)."""
    save_every: int = Field(250, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if (self.text is None) == (self.task is None):
            raise ValueError("give either `text`, a file to learn from, or `task`, whose textbook is learned")
        if self.worked and self.task is None:
            raise ValueError("`worked` examples come from a `task`; a text file has none")
        if self.context > self.model.longest:
            raise ValueError(f"context {self.context} is longer than the model reads: raise model.longest")
        return self


def pretrain(c: Config, run: Run) -> None:
    task = open_task(c.task, c.seed) if c.task else None
    train, held_out = text_file(c.text, c.held_out) if c.text else ([], _pages(task, _HELD_OUT, 64))
    run.reads(c.text, *(task.files if task else ()))
    newest = run.latest()
    if newest:
        policy = run.restore(Policy.load(newest, c.precision, Adam(weight_decay=c.weight_decay), c.recompute))
    else:
        words = Tokenizer.load(c.tokenizer) if c.tokenizer else train_tokenizer(_sample(train, task), c.vocabulary)
        shape = c.model.shape(words.size)
        policy = Policy.create(
            shape, Conversation(words), c.seed, c.precision, Adam(weight_decay=c.weight_decay), c.recompute
        )
    tokenizer = policy.conversation.tokenizer
    corpus = stream(train if task is None else task.exposition, tokenizer, c.context, c.seed)

    for step in run.steps(range(run.step, c.steps), keep=policy, every=c.save_every):
        rollouts = text_rollouts(corpus.rows(step, c.batch), c.seed, step)
        if task and c.worked:
            keys = [Key(c.seed, "worked", step, i) for i in range(c.worked)]
            rollouts += policy.conversation.demonstrate_all(task.worked(step, c.worked), keys)
        batches = pack(rollouts, token_mean(rollouts), c.token_budget, prompts=False)
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        stats = policy.update(batches, likelihood(), rate, c.clip_norm)
        if (step + 1) % c.test_every == 0 or step + 1 == c.steps:
            stats["held_out_bits_per_byte"] = test(policy, held_out, c.context)
        run.record(step, **stats, learning_rate=rate)
        if step + 1 == c.steps:
            print(f"held-out text costs {stats['held_out_bits_per_byte']:.3f} bits per byte")


def test(policy: Policy, documents: Sequence[str], context: int) -> float:
    """Bits per byte of documents, each token predicted from at most `context - 1` before it."""
    rows = chunks(token_stream(documents, policy.conversation.tokenizer), context)
    scores = policy.score(text_rollouts(rows, 0, 0))
    return bits_per_byte(-float(sum(score.logprob.sum(dtype="float64") for score in scores)), documents)


def _pages(task: Task | None, step: int, count: int) -> list[str]:
    return task.exposition(step, count) if task else []


def _sample(train: Sequence[str], task: Task | None) -> list[str]:
    """Text to train a tokenizer on: the file, or the textbook with the task's worked examples, if it has any."""
    if task is None:
        return list(train)
    try:
        lessons = task.worked(_HELD_OUT, _SAMPLE)
    except SchoolError:
        lessons = []
    told = [f"{d.problem.messages[-1].content}\n{d.thought or ''}\n{d.answer}" for d in lessons]
    return _pages(task, _HELD_OUT + 1, _SAMPLE) + told
