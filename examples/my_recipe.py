"""A recipe of your own, with a loss and an advantage of its own: positive-only policy gradient.

school train examples/my_recipe.py --model MODEL --task jsonl:examples/problems.jsonl --steps 20

It gets what ours have: checked configs, resume after a kill, metrics, rollouts, the board.
"""

from torch import Tensor

from schoolhouse import (
    BaseConfig,
    Batch,
    Group,
    Optimizer,
    Policy,
    RolloutSampling,
    RolloutStream,
    Run,
    Scores,
    drop_ungraded,
    grade_rollouts,
    open_task,
    pack,
    prompt_groups,
    rollouts_of,
    token_mean,
)


class Config(BaseConfig):
    model: str
    """Folder of the model to start from."""
    task: str = "school"
    seed: int = 0
    steps: int = 20
    prompts_per_step: int = 8
    group_size: int = 8
    sampling: RolloutSampling = RolloutSampling(max_new_tokens=64)
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)


def best_of_group(groups: list[Group]) -> list[list[float]]:
    """Advantage 1 for the rollouts with the best reward of their group, else 0. A row [T] for each rollout."""
    rows = []
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            advantage = float(verdict.reward == max(group.rewards))
            rows.append([advantage * mask for mask in rollout.loss_mask])
    return rows


def weighted_likelihood(batch: Batch, scores: Scores) -> Tensor:
    """-A log pi for each token. [N]"""
    return -batch["advantage"] * scores.logprob


def my_recipe(c: Config, run: Run) -> None:
    policy = Policy.load(run.model_path(c.model), optimizer=c.optimizer)
    task, conversation = open_task(c.task, c.seed), policy.conversation

    def make_prompts(step):
        problems = task.train_problems(step, c.prompts_per_step)
        return prompt_groups(conversation, problems, c.group_size, seed=c.seed, purpose="my recipe", step=step)

    def sample(policy, prompts):
        return policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)

    stream = run.restore(RolloutStream(policy, make_prompts, sample))
    for step, rollouts in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=10):
        groups = drop_ungraded(grade_rollouts(rollouts, task, conversation.parse_completion))
        graded = rollouts_of(groups)
        batches = pack(graded, token_mean(graded), advantage=best_of_group(groups))
        rate = c.optimizer.rate(step, c.steps)
        stats = policy.update(batches, weighted_likelihood, rate, c.optimizer.max_grad_norm)
        run.record(step, groups, conversation.parse_completion, learning_rate=rate, **stats)
