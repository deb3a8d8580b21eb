"""Fine-tuning on pairs of attempts at the same problem: two baselines for SCoRe.

Kumar et al. 2024, arXiv 2409.12917, section 4. In the baseline STaR, the model attempts each problem twice, and pairs
with a wrong first attempt and a right second attempt are kept (Zelikman et al. 2022). In the baseline Pair-SFT, a right
attempt is put after a wrong attempt at the same problem. Pair-SFT (Welleck et al. 2022, arXiv 2211.00053) gives far
more pairs than STaR. With `keep_correct`, the recipe also keeps pairs of two right attempts, in the same number as
corrected pairs (first wrong, then right). In the paper, the training data with pairs of two right attempts are called
D+.

The policy learns only the second attempts, and sees the first attempts as context. The starting model makes all pairs
before the first update. A resumed run makes the same pairs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field

from schoolhouse.algorithms.groups import sampled_tokens
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.eval.two_attempts import first_attempts, two_attempts
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.run import Run
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.types import NAN, REVISION_REQUEST, Group, Key, Message, Precision, Rollout, SchoolError


class Pair(NamedTuple):
    """A rollout with two attempts at one problem, and the reward of each attempt."""

    rollout: Rollout
    first: float
    second: float

    @property
    def corrected(self) -> bool:
        return self.first < 1.0 <= self.second


class Config(ChatConfig):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run. It should already know second attempts."""
    task: str = "school"
    seed: int = 0
    pairs: Literal["star", "pair_sft"] = "star"
    """star: the model makes second attempts. pair_sft: a right attempt of the model is put after a wrong attempt."""
    keep_correct: bool = False
    """Also keep pairs of two right attempts, as many as corrected pairs."""
    num_prompts: int = Field(500, gt=0)
    samples_per_prompt: int = Field(8, gt=1)
    """Number of pairs of attempts (`star`) or of attempts (`pair_sft`) per problem."""
    sampling: RolloutSampling = RolloutSampling()
    """How one attempt is sampled."""
    instruction: str = REVISION_REQUEST
    steps: int = Field(300, gt=0)
    batch_size: int = Field(64, gt=0)
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(weight_decay=0.01)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(300, gt=0)


def revision_sft(c: Config, run: Run) -> None:
    task = open_graded_task(c.task, c.seed, c.rewards)
    pairs, tokens = sample_pairs(c, Policy.load(c.model, c.precision, chat=c), task)
    kept = choose_pairs(c, pairs)
    if not kept:
        raise SchoolError(
            f"none of {len(pairs)} second attempts corrects its first attempt: raise `num_prompts` or "
            "`samples_per_prompt`"
        )
    counts = {
        "pairs": len(pairs),
        "corrected": sum(pair.corrected for pair in kept),
        "kept_correct": sum(not pair.corrected for pair in kept),
        "sampled_tokens": tokens,
    }
    examples = [second_only(pair.rollout) for pair in kept]
    policy = run.restore(load_policy(c, run))
    run.track_files(*task.files)

    for step in run.steps(range(run.step, c.steps), save=policy, every=c.save_every):
        rollouts = python_random(Key(c.seed, "revise", step)).choices(examples, k=c.batch_size)
        stats = supervised_update(policy, rollouts, c.optimizer, step, c.steps, c.microbatch_tokens)
        run.record(step, **stats, **(counts if step == 0 else {}))


def choose_pairs(c: Config, pairs: Sequence[Pair]) -> list[Pair]:
    """Choose all corrected pairs (the first attempt is wrong, the second attempt is right).

    With `keep_correct`, also choose the same number of pairs with two right attempts at random, or all such pairs if
    there are fewer. Pairs with a truncated second attempt are left out, because a truncated attempt does not teach the
    model to end its turn.
    """
    ended = [pair for pair in pairs if pair.rollout.finish_reason == "stop" and pair.second >= 1.0]
    corrected, right = [pair for pair in ended if pair.corrected], [pair for pair in ended if not pair.corrected]
    few = min(len(corrected), len(right)) if c.keep_correct else 0
    return corrected + python_random(Key(c.seed, "kept right")).sample(right, few)


def sample_pairs(c: Config, policy: Policy, task: Task) -> tuple[list[Pair], int]:
    """Sample pairs of two attempts and grade the attempts. Returns the pairs and the total number of sampled tokens."""
    conversation, problems = policy.conversation, task.train_problems(0, c.num_prompts)
    policy.sampling_weights = c.sampling.weights
    prompts = prompt_groups(conversation, problems, c.samples_per_prompt, seed=c.seed, purpose="revise")
    if c.pairs == "pair_sft":
        attempts = policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)
        groups = grade_rollouts(attempts, task, conversation.parse_completion)
        pairs = [pair for group in groups for pair in pair_up(group, conversation, c.instruction)]
        return pairs, sampled_tokens(attempts)
    both = two_attempts(policy, prompts, c.sampling.max_new_tokens, c.sampling.temperature, c.instruction)
    first, second = (
        [v.reward for group in grade_rollouts(rollouts, task, conversation.parse_completion) for v in group.verdicts]
        for rollouts in (first_attempts(both), both)
    )
    graded = zip(both, first, second, strict=True)
    return [Pair(r, a, b) for r, a, b in graded if a is not None and b is not None], sampled_tokens(both)


def pair_up(group: Group, conversation: Conversation, instruction: str) -> list[Pair]:
    """Make pairs for one problem: put a right attempt after every attempt.

    If possible, the two attempts of a pair are different. The result is empty if no attempt is right. A truncated
    attempt is never the second attempt of a pair.
    """
    graded = [(r, v.reward) for r, v in zip(group.rollouts, group.verdicts, strict=True) if v.reward is not None]
    right = [rollout for rollout, reward in graded if reward >= 1.0 and rollout.finish_reason == "stop"]
    pairs, request = [], (Message("user", instruction),)
    for at, (rollout, reward) in enumerate(graded if right else []):
        others = [other for other in right if other is not rollout] or right
        tokens = others[at % len(others)].last_turn()
        begun = conversation.append_messages(rollout, request)
        second = begun.append_sampled(tokens, (NAN,) * len(tokens), "stop", rollout.policy_version)
        pairs.append(Pair(second, reward, 1.0))
    return pairs


def second_only(pair: Rollout) -> Rollout:
    """The rollout of a pair with a loss mask that covers only the last turn (the second attempt)."""
    start = pair.turns[-1]
    return replace(pair, loss_mask=(False,) * start + pair.loss_mask[start:], turns=(start,))
