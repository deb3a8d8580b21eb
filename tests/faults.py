"""The fault matrix: what can go wrong with a run, and what happens then. Tests name the row that they prove.

    @pytest.mark.fault("verifier hangs")

`make faults` runs those tests and prints the matrix; docs/reliability.md holds the same rows (a test compares them).
The first twenty are what users of today's trainers report most (the numbers in brackets are issues of those trainers).
"""

FAULTS: dict[str, tuple[str, str]] = {  # row: (fault, what happens)
    "foreign rollouts": (
        "rollouts come from weights that are not the policy's (verl#7495, unsloth#8701)",
        "sampled and learned log-probabilities are compared in every step; beyond `gap_limit` the run stops before the "
        "weights change",
    ),
    "sampler and learner disagree": (
        "sampler and learner compute other log-probabilities (open-instruct#1473)",
        "the gap is rounding, recorded in every step; 0.0 in `exact`; `correction` weighs by it",
    ),
    "ids change on the way": (
        "decoding and encoding again changes ids (verl#6719)",
        "nothing is encoded again: rollouts carry ids, others' words are put behind them; other ids in a kept cache "
        "are refused",
    ),
    "mask all zero": ("a mask lets nothing be learned (marin#7237)", "refused, saying what to look at"),
    "mask all one": ("a mask lets the prompt be learned too (Megatron-Bridge#3359)", "refused, saying what to look at"),
    "killed": (
        "a run is killed at any instant (OpenRLHF#1322, verl#7933)",
        "the same command goes on from the newest complete checkpoint and ends in the same bits",
    ),
    "killed with rollouts waiting": (
        "with a lag, rollouts that wait for their step are lost on resume (OpenRLHF#1322)",
        "they are saved with the checkpoint and handed out again",
    ),
    "hang without a word": (
        "something waits for ever (verl#7155, TRL#6913)",
        "whatever judges has a clock outside of its process; the answer is not judged, with the reason",
    ),
    "verifier lies": (
        "a verifier fails and that counts as wrong (verl#5635)",
        "a verdict without a score, left out of baseline and loss, and counted",
    ),
    "tool text in a reward": (
        "what a tool or user said is judged or praised as the policy's own (verl#6392)",
        "verifiers see the policy's last turn alone; other tokens carry no loss",
    ),
    "accumulation changes the loss": (
        "micro-batches change the loss (TRL#3021, ms-swift#10117)",
        "every token carries its weight: however a step is cut, the update is the same",
    ),
    "out of memory late": (
        "the longest batch comes at step 400 and does not fit (unsloth#1624)",
        "the heaviest micro-batch is tried before the first step; `school estimate` tells the memory beforehand",
    ),
    "memory grows": (
        "a process grows until the system kills it (verl#275)",
        "freed memory goes back to the system after sampling and after learning",
    ),
    "slow sampling": (
        "a batch waits for its longest answer (TRL#3574)",
        "a finished rollout's slot is filled at once, and what it says does not change",
    ),
    "heavy imports": (
        "packages conflict, or are needed although unused (TRL's async docs, verl#7025)",
        "the core needs no peer; what is heavy is imported where it is used",
    ),
    "no gradient": (
        "groups agree and nothing is learned (TRL#3857)",
        "counted in every step by reason; the console says so when it matters",
    ),
    "reward does not rise": (
        "reward stays flat and nobody knows why (open-r1#474)",
        "after ten steps the console says what keeps it, in words, and what to do",
    ),
    "estimators disagree": (
        "two trainers, one formula, two losses (verl#5355)",
        "loss and gradient equal TRL's GRPO and RLOO trainers on the same rollouts",
    ),
    "not repeatable": (
        "the same seed gives another run (verl#1683)",
        "the same bits on the same machine; `school repeat RUN` shows it, or what differs",
    ),
    "text cannot be seen": (
        "nobody can read what was sampled (NeMo-RL#938)",
        "every rollout is a line of JSON with its text, verdict and log-probabilities",
    ),
    "checkpoint is no model": (
        "a checkpoint needs a conversion (verl#770)",
        "every checkpoint is a model folder in Hugging Face format",
    ),
    "no compiler, no GPU": ("there is no compiler and no GPU (verl#3266)", "torch computes the same on the processor"),
    "verifier hangs": ("a verifier loops, in Python or in C", "killed at its clock, not judged, the others are"),
    "verifier crashes": ("a verifier takes its process along", "a new process, not judged, with the exit code"),
    "verifier raises": ("a verifier raises, exits or recurses", "not judged, with the exception"),
    "verifier returns NaN": ("a score that is no number", "not judged, with the reason"),
    "verifier eats memory": ("a verifier allocates without end", "refused at its limit: not judged, the others are"),
    "too few rewards": ("a reward function returns too few values", "not judged, with both numbers"),
    "gradient not finite": ("NaN or infinity in loss or gradient", "the run stops; the weights are as before"),
    "weights not finite": ("NaN or infinity in weights", "sampling stops and says so before anything is judged"),
    "checkpoint damaged": (
        "a bit flipped, a file cut or missing",
        "named by file; without it the one before",
    ),
    "checkpoint half written": ("a kill while a checkpoint is written", "it never bore a number: removed on resume"),
    "disk full": ("the disk fills during a checkpoint", "the newest complete one stays; free space and go on"),
    "torn line": ("a metrics file with a torn last line", "cut off and done again"),
    "config changed": ("other values between kill and resume", "refused, key by key"),
    "epoch ends": (
        "a run stops where an epoch ends (verl#5725)",
        "steps are counted, not epochs: none is lost",
    ),
    "task shrinks": ("a data file changes between kill and resume", "refused, naming the file"),
    "two runs, one folder": ("two processes share a run folder", "the second is refused with the first's process id"),
    "clock jumps": ("the wall clock is set back or forward", "nothing that is learned or kept depends on it"),
}


def markdown(results: dict[str, tuple[int, int]]) -> str:
    """The matrix with (passed, all) tests of each row."""
    lines = ["| fault | what happens | tests passed |", "|---|---|---|"]
    for row, (fault, then) in FAULTS.items():
        passed, tests = results.get(row, (0, 0))
        lines.append(f"| {fault} | {then} | {f'{passed} of {tests}' if tests else 'NONE'} |")
    return "\n".join(lines)
