"""TRL 1.16 as an oracle: from the same completions and rewards, the same advantages, loss and gradient to 1e-5.

TRL's own trainers sample, grade and score (their real methods, on a tiny random Qwen3). Then the weights are moved, so
that ratios leave 1 and the clip is active. Both sides compute the loss and its gradient with respect to every weight.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from torch import Tensor

from schoolhouse.algorithms.advantages import group_advantage
from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.algorithms.losses import (
    ImportanceLevel,
    Loss,
    add_penalty,
    cispo,
    clipped_surrogate,
    kl_penalty,
    ratio_stats,
)
from schoolhouse.algorithms.packing import (
    Batch,
    Scores,
    TokenWeight,
    constant,
    pack,
    sequence_mean,
    sequence_sum,
    token_mean,
)
from schoolhouse.algorithms.reward_shaping import kl_in_reward
from schoolhouse.types import NAN, Group, Key, Problem, Rollout
from tiny_groups import verdict

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own

G, LONGEST = 4, 12
PROMPTS = ["ab", "cdabc"]
REWARDS = [1.0, 0.0, None, 0.25, 0.0, 1.0, 0.0, 0.0]  # one is ungraded

Aggregation = Callable[[list[Rollout]], TokenWeight]


@dataclass(frozen=True)
class Case:
    """One algorithm, as options of TRL and as parts of ours."""

    trl: dict[str, Any]
    loss_fn: Loss
    aggregation: Aggregation
    advantage: dict[str, Any] = field(default_factory=dict)
    level: ImportanceLevel = "token"


CASES = {
    "GRPO": Case({"loss_type": "grpo"}, clipped_surrogate(0.2, 0.2), sequence_mean),
    "Dr. GRPO": Case(
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        clipped_surrogate(0.2, 0.2),
        lambda scope: constant(scope, LONGEST),
        {"scale": "none"},
    ),
    "DAPO": Case({"loss_type": "dapo", "epsilon_high": 0.28}, clipped_surrogate(0.2, 0.28), token_mean),
    "Lite-PPO": Case(
        {"loss_type": "dapo", "scale_rewards": "batch"}, clipped_surrogate(), token_mean, {"scale": "batch_std"}
    ),
    "GSPO": Case(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        clipped_surrogate(0.03, 0.04, level="sequence"),
        sequence_mean,
        level="sequence",
    ),
    "CISPO": Case({"loss_type": "cispo", "epsilon_high": 1.1}, cispo(0.1), token_mean),
}


@pytest.fixture(scope="module")
def trl() -> Any:
    """The package, imported once, as it is slow. Without it these tests are skipped."""
    return pytest.importorskip("trl", reason="the oracle is TRL; it comes with the extra `dev`")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<pad>", "<eos>", *"abcdefgh"])}))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")


def make_trainer(cls: type, config: type, tokenizer: Any, folder: Path, **options: Any) -> Any:
    """A real trainer around a tiny random model, whose policy is moved away from its reference."""
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model_config = Qwen3Config(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(model_config).save_pretrained(folder)  # TRL loads its reference from the folder of the policy
    trainer = cls(
        model=Qwen3ForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: REWARDS,
        args=config(
            output_dir=str(folder),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(REWARDS),
            num_generations=G,
            num_iterations=2,  # so that the policy at the start of the update is kept
            max_completion_length=LONGEST,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    move(trainer.model, 0.02)
    return trainer


def move(model: torch.nn.Module, distance: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(distance * torch.randn_like(parameter))


def sample(trainer: Any) -> dict[str, Tensor]:
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])


def groups_of(sampled: dict[str, Tensor]) -> list[Group]:
    """TRL's padded batch as groups."""
    rollouts = []
    for i in range(len(REWARDS)):
        prompt = sampled["prompt_ids"][i][sampled["prompt_mask"][i].bool()].tolist()
        completion = sampled["completion_ids"][i][sampled["completion_mask"][i].bool()].tolist()
        key = Key(0, "oracle", 0, i // G, i % G)
        prefix = Rollout(
            Problem(PROMPTS[i // G], (), ""), key, tuple(prompt), (False,) * len(prompt), (NAN,) * len(prompt)
        )
        rollouts.append(prefix.append_sampled(completion, [NAN] * len(completion), "stop", 0))
    verdicts = [verdict(reward) for reward in REWARDS]
    return [
        Group(rollouts[i].problem, tuple(rollouts[i : i + G]), tuple(verdicts[i : i + G]))
        for i in range(0, len(rollouts), G)
    ]


def rows_of(rollouts: list[Rollout], padded: Tensor) -> list[list[float]]:
    """Padded rows of completions as rows [T] of rollouts, with nan in the prompt, where TRL has no number."""
    rows = []
    for rollout, row in zip(rollouts, padded.tolist(), strict=True):
        length = sum(rollout.loss_mask)
        rows.append([NAN] * (len(rollout) - length) + row[:length])
    return rows


def logprob_of(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Log-probability of each token of one sequence, nan at the first. [T]"""
    logprob = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return torch.cat([torch.full((1,), NAN), logprob])


def loss_and_gradient(model: torch.nn.Module, batches: list[Batch], loss_fn: Loss) -> tuple[Tensor, Tensor]:
    """The sum of `Policy.update` and its gradient, through the same model that TRL trains."""
    loss = torch.zeros(())
    for batch in batches:
        logprob = torch.cat([logprob_of(model, tokens) for tokens in batch.tokens.split(batch.lengths)])
        loss = loss + (batch.weight * loss_fn(batch, Scores(logprob, logprob.detach()))).sum()
    return loss.detach(), flat(torch.autograd.grad(loss, list(model.parameters())))


def assert_equal(trainer: Any, sampled: dict[str, Tensor], batches: list[Batch], loss_fn: Loss) -> None:
    trl_loss = trainer._compute_loss(trainer.model, sampled)
    trl_gradient = flat(torch.autograd.grad(trl_loss, list(trainer.model.parameters())))
    loss, gradient = loss_and_gradient(trainer.model, batches, loss_fn)
    torch.testing.assert_close(loss, trl_loss.detach(), rtol=1e-5, atol=1e-6)
    assert trl_gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, trl_gradient, rtol=1e-5, atol=1e-5)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("beta, corrected", [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.fault("estimators disagree")
def test_loss_and_gradient_equal_those_of_grpo_trainer(
    trl: Any, tokenizer: Any, tmp_path: Path, name: str, beta: float, corrected: bool
):
    """`corrected` is TRL's default for the KL term. Without it the term is GRPO's own."""
    case = CASES[name]
    options = {"beta": beta, "use_bias_correction_kl": corrected, **case.trl}
    trainer = make_trainer(trl.GRPOTrainer, trl.GRPOConfig, tokenizer, tmp_path, **options)
    sampled = sample(trainer)
    move(trainer.model, 0.05)

    groups = groups_of(sampled)
    rollouts = rollouts_of(groups)
    advantage = group_advantage(groups, **case.advantage)
    assert [row[-1] for row in advantage] == pytest.approx(sampled["advantages"].tolist(), rel=1e-5, abs=1e-6)
    rows: dict[str, Any] = {"advantage": advantage, "old": rows_of(rollouts, sampled["old_per_token_logps"])}
    loss_fn = case.loss_fn
    if beta:
        rows["reference"] = rows_of(rollouts, sampled["ref_per_token_logps"])
        loss_fn = add_penalty(loss_fn, beta, kl_penalty("k3", ratio=case.level if corrected else None))
    batches = pack(rollouts, case.aggregation(rollouts), microbatch_tokens=40, **rows)
    assert len(batches) > 1
    assert len({sum(rollout.loss_mask) for rollout in rollouts}) > 2, "completions should differ in length"
    assert_clip_is_active(trainer.model, batches)
    assert_equal(trainer, sampled, batches, loss_fn)


def assert_clip_is_active(model: torch.nn.Module, batches: list[Batch]) -> None:
    with torch.no_grad():
        clipped = []
        for batch in batches:
            logprob = torch.cat([logprob_of(model, tokens) for tokens in batch.tokens.split(batch.lengths)])
            stats = ratio_stats(batch, Scores(logprob, logprob), 0.2, 0.28)
            clipped.append(stats["tokens"] * (stats["clip_frac_low"] + stats["clip_frac_high"]))
    assert sum(clipped) >= 3


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.fault("estimators disagree")
def test_loss_and_gradient_equal_those_of_rloo_trainer(trl: Any, tokenizer: Any, tmp_path: Path, beta: float):
    """TRL's RLOO clips the ratio of the whole completion, and subtracts KL from the reward."""
    trainer = make_trainer(trl.RLOOTrainer, trl.RLOOConfig, tokenizer, tmp_path, beta=beta)
    sampled = sample(trainer)

    groups = groups_of(sampled)
    rollouts = rollouts_of(groups)
    with torch.no_grad():
        old = [logprob_of(trainer.model, torch.tensor(rollout.tokens)).tolist() for rollout in rollouts]
        if beta:
            reference = [logprob_of(trainer.ref_model, torch.tensor(rollout.tokens)).tolist() for rollout in rollouts]
            groups = kl_in_reward(groups, old, reference, beta)
    advantage = group_advantage(groups, baseline="leave_one_out", scale="none")
    assert [row[-1] for row in advantage] == pytest.approx(sampled["advantages"].tolist(), rel=1e-5, abs=1e-5)

    move(trainer.model, 0.02)
    batches = pack(rollouts, sequence_mean(rollouts), microbatch_tokens=40, advantage=advantage, old=old)
    loss_fn = clipped_surrogate(0.2, 0.2, level="product")
    unclipped = clipped_surrogate(1.0, 1e9, level="product")
    assert (
        loss_and_gradient(trainer.model, batches, loss_fn)[0] > loss_and_gradient(trainer.model, batches, unclipped)[0]
    )
    assert_equal(trainer, sampled, batches, loss_fn)


def test_rloo_on_fresh_rollouts_is_reinforce_on_the_sum_of_log_probabilities(trl: Any, tokenizer: Any, tmp_path: Path):
    """The two forms of RLOO agree where recipes use it: in the first update on fresh rollouts."""
    trainer = make_trainer(trl.RLOOTrainer, trl.RLOOConfig, tokenizer, tmp_path, beta=0.0)
    groups = groups_of(sample(trainer))
    rollouts = rollouts_of(groups)
    advantage = group_advantage(groups, baseline="leave_one_out", scale="none")
    gradients = []
    forms: list[tuple[Aggregation, ImportanceLevel]] = [(sequence_sum, "token"), (sequence_mean, "product")]
    for aggregation, level in forms:
        batches = pack(rollouts, aggregation(rollouts), advantage=advantage)
        loss_fn = clipped_surrogate(level=level, on_policy=True)
        gradients.append(loss_and_gradient(trainer.model, batches, loss_fn)[1])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
