"""The fault matrix: what can go wrong in a run, and what happens then. Tests name the row that they prove.

    @pytest.mark.fault("verifier hangs")

`make faults` runs those tests and prints the matrix; docs/reliability.md has the same rows (a test compares them). The
first twenty are faults that users of other trainers report most (in brackets: issues of those trainers).
"""

FAULTS: dict[str, tuple[str, str]] = {  # row: (fault, what happens)
    "foreign rollouts": (
        "rollouts were sampled from other weights than the policy's (verl#7495, unsloth#8701)",
        "log-probabilities of sampler and learner are compared in every step; above `max_logprob_gap` the run stops "
        "before the weights change",
    ),
    "sampler and learner disagree": (
        "sampler and learner compute different log-probabilities (open-instruct#1473)",
        "the gap is rounding and logged in every step; it is 0.0 with precision `exact`; "
        "`loss.importance_correction` corrects for it",
    ),
    "ids change on the way": (
        "decoding and encoding again changes token ids (verl#6719)",
        "nothing is encoded again: rollouts hold ids, and context is appended to them; different ids in a kept cache "
        "are refused",
    ),
    "mask all zero": ("a loss mask without any token (marin#7237)", "refused, with the place to check"),
    "mask all one": ("a loss mask that includes the prompt (Megatron-Bridge#3359)", "refused, with the place to check"),
    "killed": (
        "a run is killed at any time (OpenRLHF#1322, verl#7933)",
        "the same command resumes from the newest complete checkpoint and ends in the same bits",
    ),
    "killed with rollouts waiting": (
        "with a policy lag, rollouts that wait for their step are lost on resume (OpenRLHF#1322)",
        "they are saved with the checkpoint and used after it",
    ),
    "hang without a word": (
        "something waits for ever (verl#7155, TRL#6913)",
        "grading has a time limit in another process; the completion is ungraded, with the reason",
    ),
    "verifier lies": (
        "a verifier fails and the completion counts as incorrect (verl#5635)",
        "a verdict without a reward, left out of baseline and loss, and counted",
    ),
    "tool text in a reward": (
        "text of a tool or user is graded or trained on as the policy's own (verl#6392)",
        "verifiers see the policy's last turn only; other tokens have no loss",
    ),
    "accumulation changes the loss": (
        "micro-batches change the loss (TRL#3021, ms-swift#10117)",
        "every token has its own weight: the update is the same for every split of a step",
    ),
    "out of memory late": (
        "the longest batch comes at step 400 and does not fit (unsloth#1624)",
        "the largest micro-batch is tried before the first step; `school estimate` measures the memory beforehand",
    ),
    "memory grows": (
        "a process grows until the system kills it (verl#275)",
        "freed memory is returned to the system after sampling and after learning",
    ),
    "slow sampling": (
        "a batch waits for its longest completion (TRL#3574)",
        "the slot of a finished rollout is reused at once, and its completion does not depend on it",
    ),
    "heavy imports": (
        "packages conflict, or are required although unused (TRL's async docs, verl#7025)",
        "the core needs no other trainer; heavy packages are imported where they are used",
    ),
    "no gradient": (
        "all rewards of a group are equal and nothing is learned (TRL#3857)",
        "counted in every step by reason; the console says so when it matters",
    ),
    "reward does not rise": (
        "the reward stays flat for an unknown reason (open-r1#474)",
        "after ten steps the console explains the reason and what to do",
    ),
    "estimators disagree": (
        "two trainers, one formula, two losses (verl#5355)",
        "loss and gradient equal those of TRL's GRPO and RLOO trainers on the same rollouts",
    ),
    "not repeatable": (
        "the same seed gives another run (verl#1683)",
        "the same bits on the same machine; `school repeat RUN` confirms it, or shows the difference",
    ),
    "text cannot be seen": (
        "sampled text is not visible (NeMo-RL#938)",
        "every rollout is a line of JSON with its text, reward and log-probabilities",
    ),
    "checkpoint is no model": (
        "a checkpoint needs a conversion (verl#770)",
        "every checkpoint is a model folder in Hugging Face format",
    ),
    "no compiler, no GPU": ("there is no compiler and no GPU (verl#3266)", "torch computes the same on the CPU"),
    "verifier hangs": (
        "a verifier loops, in Python or in C",
        "it is killed at its time limit: that completion is ungraded, the others are graded",
    ),
    "verifier crashes": ("a verifier crashes its process", "a new process; ungraded, with the exit code"),
    "verifier raises": ("a verifier raises, exits or recurses", "ungraded, with the exception"),
    "verifier returns NaN": ("a reward that is not a number", "ungraded, with the reason"),
    "verifier eats memory": (
        "a verifier allocates memory without end",
        "it is stopped at its memory limit: that completion is ungraded, the others are graded",
    ),
    "too few rewards": ("a reward function returns too few values", "ungraded, with both numbers"),
    "gradient not finite": ("NaN or infinity in loss or gradient", "the run stops; the weights are unchanged"),
    "weights not finite": ("NaN or infinity in weights", "sampling stops with an error before anything is graded"),
    "checkpoint damaged": (
        "a flipped bit, a cut or missing file",
        "the file is named; without this checkpoint the one before is used",
    ),
    "checkpoint half written": (
        "a kill while a checkpoint is written",
        "it has no number yet and is deleted on resume",
    ),
    "disk full": (
        "the disk fills during a checkpoint",
        "the newest complete checkpoint is kept; free some space and resume",
    ),
    "torn line": ("a metrics file with a torn last line", "the line is removed and its step done again"),
    "config changed": (
        "another config or recipe file between kill and resume",
        "refused, with every changed key or the file",
    ),
    "epoch ends": (
        "a run stops where an epoch ends (verl#5725)",
        "steps are counted, not epochs: none is lost",
    ),
    "task shrinks": ("a data file changes between kill and resume", "refused, with the name of the file"),
    "two runs, one folder": (
        "two processes use the same run folder",
        "the second is refused, with the process id of the first",
    ),
    "clock jumps": ("the wall clock jumps back or forward", "results do not depend on it"),
}


def markdown(results: dict[str, tuple[int, int]]) -> str:
    """The matrix with (passed, all) tests of each row."""
    lines = ["| fault | what happens | tests passed |", "|---|---|---|"]
    for row, (fault, then) in FAULTS.items():
        passed, tests = results.get(row, (0, 0))
        lines.append(f"| {fault} | {then} | {f'{passed} of {tests}' if tests else 'NONE'} |")
    return "\n".join(lines)
