"""Pretraining: train a tokenizer on a text, and then a model that maximizes the likelihood of the text.

The text is a user's file, or the synthetic corpus of a task. A task generates its corpus from a seed, in its method
`pretraining_text`. A part of the text is not used for training (held out). The loss on the held-out text is given in
bits per byte, so models with different tokenizers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from schoolhouse.algorithms.settings import Optimizer
from schoolhouse.config import BaseConfig
from schoolhouse.data.chat import Conversation
from schoolhouse.data.corpus import bits_per_byte, chunks, row_source, split_text_file, text_rollouts, token_stream
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.runs.run import Run
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, Precision, SchoolError

_SAMPLE, _HELD_OUT = 2000, 1_000_003  # documents for the tokenizer; step of the held-out documents


class Model(BaseConfig):
    """A decoder with the architecture of Qwen3."""

    hidden_size: int = Field(128, gt=0)
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    num_kv_heads: int = Field(4, gt=0)
    head_dim: int = Field(32, gt=0, multiple_of=2)
    intermediate_size: int = Field(384, gt=0)
    """Width inside the MLP."""
    max_seq_len: int = Field(1024, gt=0)
    """Maximum number of tokens in a sequence that the model can read."""

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: change one number"
            )
        return self

    def to_config(self, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_layers,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            max_position_embeddings=self.max_seq_len,
        )


class Config(BaseConfig):
    text: Path | None = None
    """A .txt or .jsonl file (or one of them as .gz) to learn from."""
    task: str | None = None
    """Instead of `text`: a task with a synthetic corpus, school[:families]."""
    tokenizer: Path | None = None
    """Folder of a tokenizer to use. Without this key, a tokenizer is trained on the text."""
    vocab_size: int = Field(1024, ge=262)
    seed: int = 0
    model: Model = Model()
    steps: int = Field(1000, gt=0)
    batch_size: int = Field(32, gt=0)
    """Number of rows per update."""
    demos_per_batch: int = Field(0, ge=0)
    """Number of task demonstrations in each update, next to the rows. Today's base models have read many of them."""
    seq_len: int = Field(128, gt=1)
    """Number of tokens in a row."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Fraction of a text file that is not used for training."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-3, weight_decay=0.01)
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    eval_every: int = Field(250, gt=0)
    """Number of steps between measurements of bits per byte (the last step is always measured)."""
    save_every: int = Field(250, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if (self.text is None) == (self.task is None):
            raise ValueError(
                "set exactly one of the keys `text` (a file to learn from) and `task` (with a corpus to learn from)"
            )
        if self.demos_per_batch and self.task is None:
            raise ValueError(
                "`demos_per_batch` needs a `task`, because a text file has no demonstrations: set "
                "`demos_per_batch` to 0"
            )
        if self.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"seq_len {self.seq_len} is larger than model.max_seq_len: lower seq_len, or raise model.max_seq_len"
            )
        return self


def pretrain(c: Config, run: Run) -> None:
    task = open_task(c.task, c.seed) if c.task else None
    train, held_out = split_text_file(c.text, c.held_out) if c.text else ([], _documents(task, _HELD_OUT, 64))
    run.track_files(c.text, *(task.files if task else ()))
    newest = run.latest_checkpoint()
    if newest:
        policy = run.restore(Policy.load(newest, c.precision, c.optimizer, c.activation_checkpointing))
    else:
        tokenizer = Tokenizer.load(c.tokenizer) if c.tokenizer else train_tokenizer(_sample(train, task), c.vocab_size)
        policy = Policy.create(
            c.model.to_config(tokenizer.vocab_size),
            Conversation(tokenizer),
            c.seed,
            c.precision,
            c.optimizer,
            c.activation_checkpointing,
        )
    tokenizer = policy.conversation.tokenizer
    corpus = row_source(train if task is None else task.pretraining_text, tokenizer, c.seq_len, c.seed)

    for step in run.steps(range(run.step, c.steps), save=policy, every=c.save_every):
        rollouts = text_rollouts(corpus.rows(step, c.batch_size), c.seed, step)
        if task and c.demos_per_batch:
            keys = [Key(c.seed, "worked", step, i) for i in range(c.demos_per_batch)]
            rollouts += policy.conversation.demonstration_rollouts(task.demonstrations(step, c.demos_per_batch), keys)
        stats = supervised_update(policy, rollouts, c.optimizer, step, c.steps, c.microbatch_tokens, prompts=False)
        if (step + 1) % c.eval_every == 0 or step + 1 == c.steps:
            stats["held_out_bits_per_byte"] = evaluate_text(policy, held_out, c.seq_len)
        run.record(step, **stats)
        if step + 1 == c.steps:
            print(f"held-out text costs {stats['held_out_bits_per_byte']:.3f} bits per byte")


def evaluate_text(policy: Policy, documents: Sequence[str], seq_len: int) -> float:
    """Compute the loss on documents, in bits per byte.

    The policy predicts each token from at most `seq_len - 1` earlier tokens.
    """
    rows = chunks(token_stream(documents, policy.conversation.tokenizer), seq_len)
    scores = policy.score(text_rollouts(rows, 0, 0))
    return bits_per_byte(-float(sum(score.logprob.sum(dtype="float64") for score in scores)), documents)


def _documents(task: Task | None, step: int, count: int) -> list[str]:
    return task.pretraining_text(step, count) if task else []


def _sample(train: Sequence[str], task: Task | None) -> list[str]:
    """Return the tokenizer's training text: the text file, or the task's synthetic corpus and demonstrations."""
    if task is None:
        return list(train)
    try:
        demonstrations = task.demonstrations(_HELD_OUT, _SAMPLE)
    except SchoolError:
        demonstrations = []
    texts = [f"{d.problem.messages[-1].content}\n{d.thought or ''}\n{d.answer}" for d in demonstrations]
    return _documents(task, _HELD_OUT + 1, _SAMPLE) + texts
