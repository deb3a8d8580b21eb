"""A multi-turn environment: the policy guesses a number, the environment answers "higher" or "lower".

python examples/multi_turn.py MODEL [STEPS]

Turns of the environment are context: they are read in the policy's slot, and never trained on.
"""

import re
import sys
from random import Random

from schoolhouse import (
    Group,
    Message,
    Policy,
    Problem,
    Rollout,
    Verdict,
    clipped_surrogate,
    drop_constant_reward_groups,
    group_advantage,
    pack,
    prompt_groups,
    rollouts_of,
    token_mean,
)

TURNS, TOKENS = 3, 24


def problems(step: int, count: int) -> list[Problem]:
    random = Random(step)
    question = Message("user", "Guess my number between 1 and 9.")
    return [Problem(f"{step}-{i}", (question,), str(random.randint(1, 9))) for i in range(count)]


def guess(policy: Policy, rollout: Rollout) -> int | None:
    found = re.findall(r"\d", policy.conversation.parse_completion(rollout).answer)
    return int(found[-1]) if found else None


def play(policy: Policy, prompts: list[Rollout]) -> list[Rollout]:
    def environment(ended: Rollout) -> tuple[Rollout, int] | None:
        """The next turn: (rollout with the environment's message, tokens that may follow); None: the game is over."""
        number, secret = guess(policy, ended), int(ended.problem.reference)
        if number == secret or len(ended.turns) == TURNS:
            return None
        hint = "That is no number." if number is None else "Higher." if number < secret else "Lower."
        return policy.conversation.append_messages(ended, [Message("user", hint)]), TOKENS

    return policy.extend(prompts, TOKENS, next_turn=environment, max_total_tokens=TURNS * (TOKENS + 40))


model, *rest = sys.argv[1:]
policy = Policy.load(model)
for step in range(int(rest[0]) if rest else 20):
    prompts = prompt_groups(policy.conversation, problems(step, 8), 8, seed=0, purpose="game", step=step)
    rollouts = play(policy, prompts)
    verdicts = [Verdict(float(guess(policy, r) == int(r.problem.reference)) / len(r.turns)) for r in rollouts]
    groups = [
        Group(rollouts[at].problem, tuple(rollouts[at : at + 8]), tuple(verdicts[at : at + 8]))
        for at in range(0, len(rollouts), 8)
    ]
    print(f"step {step}: won {sum(bool(v.reward) for v in verdicts)} of {len(verdicts)}")
    if signal := drop_constant_reward_groups(groups):
        advantage = group_advantage(signal, scale="none")
        batches = pack(rollouts_of(signal), token_mean(rollouts), advantage=advantage)
        policy.update(batches, clipped_surrogate(on_policy=True), learning_rate=1e-4)
