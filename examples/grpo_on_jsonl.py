"""The GRPO loop on a JSONL file of problems: python examples/grpo_on_jsonl.py MODEL problems.jsonl [STEPS]

`school train grpo --model MODEL --task jsonl:problems.jsonl` does the same with logging, resume and evaluation.
"""

import sys

from schoolhouse import (
    Policy,
    clipped_surrogate,
    drop_constant_reward_groups,
    grade_rollouts,
    group_advantage,
    group_stats,
    open_task,
    pack,
    prompt_groups,
    rollouts_of,
    token_mean,
)

model, data, *rest = sys.argv[1:]
policy, task = Policy.load(model), open_task(f"jsonl:{data}?holdout=none")
conversation = policy.conversation

for step in range(int(rest[0]) if rest else 20):
    problems = task.train_problems(step, 8)
    prompts = prompt_groups(conversation, problems, 8, seed=0, purpose="train", step=step)  # [P*G]
    rollouts = policy.extend(prompts, max_new_tokens=64)
    groups = grade_rollouts(rollouts, task, conversation.parse_completion)
    print(f"step {step}: reward {group_stats(groups)['reward']:.3f}")
    if signal := drop_constant_reward_groups(groups):  # a group of equal rewards has no gradient
        advantage = group_advantage(signal, scale="none")
        batches = pack(rollouts_of(signal), token_mean(rollouts_of(groups)), advantage=advantage)
        policy.update(batches, clipped_surrogate(on_policy=True), learning_rate=1e-4)

policy.save("runs/grpo_on_jsonl")
