"""TRL 1.16 as an oracle: from the same replies and rewards, the same advantages, loss and gradient to 1e-5.

TRL's own trainers sample, judge and score (their real methods, on a tiny random Qwen3); then the weights are moved, so
that ratios leave 1 and the clip is active, and both sides take the loss and its gradient with respect to every weight.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
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
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, Verdict

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own

G, LONGEST = 4, 12
PROMPTS = ["ab", "cdabc"]
REWARDS = [1.0, 0.0, None, 0.25, 0.0, 1.0, 0.0, 0.0]  # one could not be judged

Weights = Callable[[list[Rollout]], TokenWeight]


@dataclass(frozen=True)
class Case:
    """One algorithm in both languages."""

    trl: dict[str, Any]
    objective: Loss
    weigh: Weights
    credit: dict[str, Any] = field(default_factory=dict)
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
def trl():
    """The package, imported once (it takes its time); without it these tests are skipped."""
    return pytest.importorskip("trl", reason="the oracle is TRL; it comes with the extra `dev`")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<pad>", "<eos>", *"abcdefgh"])}))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")


def trainer_of(trainer: type, config: type, tokenizer, folder, **options) -> Any:
    """A real trainer around a tiny random model, its policy moved away from its reference."""
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = Qwen3Config(
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
    Qwen3ForCausalLM(shape).save_pretrained(folder)  # TRL loads its reference from where the policy came from
    made = trainer(
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
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    move(made.model, 0.02)
    return made


def move(model: torch.nn.Module, distance: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(distance * torch.randn_like(parameter))


def sample(trainer: Any) -> dict[str, Tensor]:
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])


def groups_of(sampled: dict[str, Tensor]) -> list[Group]:
    """TRL's padded batch as our groups."""
    rollouts = []
    for i in range(len(REWARDS)):
        prompt = sampled["prompt_ids"][i][sampled["prompt_mask"][i].bool()].tolist()
        reply = sampled["completion_ids"][i][sampled["completion_mask"][i].bool()].tolist()
        key = Key(0, "oracle", 0, i // G, i % G)
        begun = Rollout(
            Problem(PROMPTS[i // G], (), ""), key, tuple(prompt), (False,) * len(prompt), (NAN,) * len(prompt)
        )
        rollouts.append(begun.append_sampled(reply, [NAN] * len(reply), "stop", 0))
    verdicts = [Verdict(r, "" if r is not None else "could not judge") for r in REWARDS]
    return [
        Group(rollouts[i].problem, tuple(rollouts[i : i + G]), tuple(verdicts[i : i + G]))
        for i in range(0, len(rollouts), G)
    ]


def rows_of(rollouts: list[Rollout], padded: Tensor) -> list[list[float]]:
    """A padded row per completion as rows that stand at their tokens; nan in the prompt, where TRL has no number."""
    rows = []
    for rollout, row in zip(rollouts, padded.tolist(), strict=True):
        written = sum(rollout.loss_mask)
        rows.append([NAN] * (len(rollout) - written) + row[:written])
    return rows


def logprob_of(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Log-probability of each token of one sequence; nan at the first. [T]"""
    logprob = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return torch.cat([torch.full((1,), NAN), logprob])


def loss_and_gradient(model: torch.nn.Module, batches: list[Batch], objective: Loss) -> tuple[Tensor, list[Tensor]]:
    """What `Policy.update` sums, through the same model that TRL trains."""
    loss = torch.zeros(())
    for batch in batches:
        logprob = torch.cat([logprob_of(model, tokens) for tokens in batch.tokens.split(batch.lengths)])
        loss = loss + (batch.weight * objective(batch, Scores(logprob, logprob.detach()))).sum()
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def assert_equal(trainer: Any, sampled: dict[str, Tensor], batches: list[Batch], objective: Loss) -> None:
    theirs = trainer._compute_loss(trainer.model, sampled)
    their_gradient = torch.autograd.grad(theirs, list(trainer.model.parameters()))
    ours, our_gradient = loss_and_gradient(trainer.model, batches, objective)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    whole = torch.cat([g.flatten() for g in their_gradient])
    assert whole.norm() > 1e-3
    torch.testing.assert_close(torch.cat([g.flatten() for g in our_gradient]), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta, corrected", [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.fault("estimators disagree")
def test_loss_and_gradient_equal_those_of_grpo_trainer(trl, tokenizer, tmp_path, name, beta, corrected):
    """`corrected` is TRL's default for the KL term; without it the term is GRPO's own."""
    case = CASES[name]
    options = {"beta": beta, "use_bias_correction_kl": corrected, **case.trl}
    trainer = trainer_of(trl.GRPOTrainer, trl.GRPOConfig, tokenizer, tmp_path, **options)
    sampled = sample(trainer)
    move(trainer.model, 0.05)

    groups = groups_of(sampled)
    rollouts = rollouts_of(groups)
    advantage = group_advantage(groups, **case.credit)
    assert [row[-1] for row in advantage] == pytest.approx(sampled["advantages"].tolist(), rel=1e-5, abs=1e-6)
    rows: dict[str, Any] = {"advantage": advantage, "old": rows_of(rollouts, sampled["old_per_token_logps"])}
    objective = case.objective
    if beta:
        rows["reference"] = rows_of(rollouts, sampled["ref_per_token_logps"])
        objective = add_penalty(objective, beta, kl_penalty("k3", ratio=case.level if corrected else None))
    batches = pack(rollouts, case.weigh(rollouts), microbatch_tokens=40, **rows)
    assert len(batches) > 1
    assert len({sum(rollout.loss_mask) for rollout in rollouts}) > 2, "replies should differ in length"
    assert_clip_is_active(trainer.model, batches)
    assert_equal(trainer, sampled, batches, objective)


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
def test_loss_and_gradient_equal_those_of_rloo_trainer(trl, tokenizer, tmp_path, beta):
    """TRL's RLOO clips the ratio of the whole reply, and charges KL in the reward."""
    trainer = trainer_of(trl.RLOOTrainer, trl.RLOOConfig, tokenizer, tmp_path, beta=beta)
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
    objective = clipped_surrogate(0.2, 0.2, level="product")
    unclipped = clipped_surrogate(1.0, 1e9, level="product")
    assert (
        loss_and_gradient(trainer.model, batches, objective)[0]
        > loss_and_gradient(trainer.model, batches, unclipped)[0]
    )
    assert_equal(trainer, sampled, batches, objective)


def test_rloo_on_fresh_rollouts_is_reinforce_on_the_sum_of_log_probabilities(trl, tokenizer, tmp_path):
    """The two ways to write RLOO agree where recipes use it: on the first update on fresh rollouts."""
    trainer = trainer_of(trl.RLOOTrainer, trl.RLOOConfig, tokenizer, tmp_path, beta=0.0)
    groups = groups_of(sample(trainer))
    rollouts = rollouts_of(groups)
    advantage = group_advantage(groups, baseline="leave_one_out", scale="none")
    gradients = []
    for weigh, level in ((sequence_sum, "token"), (sequence_mean, "product")):
        batches = pack(rollouts, weigh(rollouts), advantage=advantage)
        objective = clipped_surrogate(level=level, on_policy=True)
        gradients.append(torch.cat([g.flatten() for g in loss_and_gradient(trainer.model, batches, objective)[1]]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
