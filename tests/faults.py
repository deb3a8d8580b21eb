"""The fault matrix: what can go wrong in a run, and what happens then. Tests name the row that they prove.

    @pytest.mark.fault("verifier hangs")

`make faults` runs those tests and prints the matrix. docs/reliability.md has the same rows, and a test compares them.
The first twenty rows are the faults that users of other trainers report most. Each row names issues of those trainers
in brackets.
"""

FAULTS: dict[str, tuple[str, str]] = {  # row: (fault, what happens)
    "foreign rollouts": (
        "Rollouts were sampled by weights that differ from the weights of the policy (verl#7495, unsloth#8701).",
        "Each step compares the log-probabilities of sampler and learner. If the gap is above `max_logprob_gap`, the "
        "run stops before the weights change.",
    ),
    "sampler and learner disagree": (
        "Sampler and learner compute different log-probabilities (open-instruct#1473).",
        "The gap between log-probabilities comes only from rounding and is logged in every step. With precision "
        "`exact` the gap is 0.0. The key `loss.importance_correction` corrects the loss for the gap.",
    ),
    "ids change on the way": (
        "Decoding tokens and encoding the text again changes token ids (verl#6719).",
        "Schoolhouse never encodes a text again. Rollouts store token ids, and context is appended to these ids. If a "
        "next turn changes ids that are already in the KV cache, sampling stops with an error.",
    ),
    "mask all zero": (
        "A loss mask contains no token (marin#7237).",
        "The batch is refused, and the message says what to check.",
    ),
    "mask all one": (
        "A loss mask includes the prompt (Megatron-Bridge#3359).",
        "The batch is refused, and the message says what to check.",
    ),
    "killed": (
        "A run is killed at any time (OpenRLHF#1322, verl#7933).",
        "The same command resumes the run from the newest complete checkpoint. The resumed run ends with "
        "bit-identical results.",
    ),
    "killed with rollouts waiting": (
        "With a policy lag, a resumed run loses the rollouts that wait for their step (OpenRLHF#1322).",
        "The checkpoint also stores the waiting rollouts, and the resumed run uses them.",
    ),
    "hang without a word": (
        "A part of the run waits for ever (verl#7155, TRL#6913).",
        "Another process enforces a time limit for grading. After the time limit the completion is ungraded, and the "
        "reason is recorded.",
    ),
    "verifier lies": (
        "A verifier fails, and the completion counts as incorrect (verl#5635).",
        "The completion gets a verdict without a reward. The completion is left out of the baseline and of the loss, "
        "and it is counted as ungraded.",
    ),
    "tool text in a reward": (
        "Text from a tool or a user is graded or learned as if the policy had written this text (verl#6392).",
        "Verifiers see only the policy's last turn. Tokens of tools and users have no loss.",
    ),
    "accumulation changes the loss": (
        "The split into micro-batches changes the loss (TRL#3021, ms-swift#10117).",
        "Every token has its own weight. So the update is the same for every split of a step into micro-batches.",
    ),
    "out of memory late": (
        "The longest batch comes at step 400 and does not fit into memory (unsloth#1624).",
        "Before the first step, the run computes the memory of learning and of sampling, and tries the largest "
        "micro-batch. If the memory is too small, the run stops, and the error names the config keys to lower.",
    ),
    "memory grows": (
        "A process uses more and more memory until the system kills it (verl#275).",
        "The process returns freed memory to the system after sampling and after learning.",
    ),
    "slow sampling": (
        "A batch waits for its longest completion (TRL#3574).",
        "A waiting rollout immediately takes the slot (the row of the KV cache) of a finished rollout. The reuse of "
        "slots does not change any completion.",
    ),
    "heavy imports": (
        "Python packages conflict, or unused packages are required (TRL's async docs, verl#7025).",
        "Schoolhouse needs no other training library. Large packages are imported only where they are used.",
    ),
    "no gradient": (
        "All completions of a problem (a group) get the same reward, so the group has no gradient (TRL#3857).",
        "Every step counts the groups without a gradient, with a separate count for each reason. If there are many "
        "such groups, the console says so.",
    ),
    "reward does not rise": (
        "The reward does not rise, and the reason is unknown (open-r1#474).",
        "After ten steps the console explains why the reward does not rise, and says what to do.",
    ),
    "estimators disagree": (
        "Two trainers use the same formula but get different losses (verl#5355).",
        "On the same rollouts, loss and gradient equal those of TRL's GRPO and RLOO trainers.",
    ),
    "not repeatable": (
        "Two runs with the same seed give different results (verl#1683).",
        "On the same machine both runs give the same bits. `school repeat RUN` repeats a run and shows any difference.",
    ),
    "text cannot be seen": (
        "The user cannot see the sampled text (NeMo-RL#938).",
        "Every rollout is stored as a line of JSON with its text, reward and log-probabilities.",
    ),
    "checkpoint is no model": (
        "A checkpoint must be converted before use (verl#770).",
        "Every checkpoint is a model folder in Hugging Face format.",
    ),
    "no compiler, no GPU": (
        "The machine has no compiler and no GPU (verl#3266).",
        "Torch computes the same results on the CPU.",
    ),
    "wrong kernel": (
        "A compiled kernel gives wrong results on this machine, for example because of a fault in the compiler.",
        "Each kernel is compared with torch at its first use. Torch replaces a kernel that is wrong. A warning and "
        "`school doctor` name the kernel.",
    ),
    "verifier hangs": (
        "A verifier never ends, in Python code or in C code.",
        "The verifier is killed at its time limit. Its completion is ungraded, and all other completions are graded.",
    ),
    "verifier crashes": (
        "A verifier crashes its process.",
        "A new worker process starts. The completion is ungraded, and the exit code is recorded.",
    ),
    "verifier raises": (
        "A verifier raises an exception, exits or recurses without end.",
        "The completion is ungraded, and the exception is recorded.",
    ),
    "verifier returns NaN": (
        "A verifier returns a reward that is not a number.",
        "The completion is ungraded, and the reason is recorded.",
    ),
    "verifier eats memory": (
        "A verifier allocates memory without end.",
        "The verifier is stopped at its memory limit. Its completion is ungraded, and all other completions are "
        "graded.",
    ),
    "too few rewards": (
        "A reward function returns too few values.",
        "The completions are ungraded. The reason gives the expected and the returned number of values.",
    ),
    "worker killed": (
        "The system kills a worker process, for example because the memory is full.",
        "A new worker process starts. The completion is ungraded, and the reason names the signal.",
    ),
    "worker writes other bytes": (
        "Code of a verifier or of a model writes bytes into the pipe between its worker process and the main process.",
        "The bytes are never unpickled. The worker process is replaced, and its completion is ungraded.",
    ),
    "batch fails": (
        "A call of a reward function with a whole batch raises an exception, crashes or never ends.",
        "Each completion of the batch is graded alone. Only the completions that fail again are ungraded.",
    ),
    "nothing judged": (
        "No completion can be graded, so the run cannot learn.",
        "The run stops. The message gives the most frequent reason, with its file and its line.",
    ),
    "task raises": (
        "A method of a user's task class raises an exception or returns a value of a wrong type.",
        "The command stops with one sentence. The sentence names the file, the line and the method.",
    ),
    "gradient not finite": (
        "The loss or the gradient contains NaN or infinity.",
        "The run stops, and the weights are unchanged.",
    ),
    "weights not finite": (
        "The weights contain NaN or infinity.",
        "Sampling stops with an error before any completion is graded.",
    ),
    "checkpoint damaged": (
        "A file of a checkpoint has a flipped bit, is cut off or is missing.",
        "The message names the damaged file. The run uses the checkpoint before the damaged checkpoint.",
    ),
    "checkpoint half written": (
        "A run is killed while a checkpoint is written.",
        "The incomplete checkpoint has no number yet. The resumed run deletes the incomplete checkpoint.",
    ),
    "disk full": (
        "The disk becomes full while a checkpoint is written.",
        "The newest complete checkpoint is kept. The user can free some space and resume the run.",
    ),
    "torn line": (
        "The last line of a metrics file is incomplete.",
        "The resumed run removes the incomplete line and repeats its step.",
    ),
    "config changed": (
        "The config or the recipe file changes between kill and resume.",
        "The resume is refused. The message names every changed key, or the changed file.",
    ),
    "epoch ends": (
        "A run stops at the end of an epoch (verl#5725).",
        "The run counts steps and not epochs, so no step is lost.",
    ),
    "task shrinks": (
        "A data file changes between kill and resume.",
        "The resume is refused, and the message names the file.",
    ),
    "two runs, one folder": (
        "Two processes use the same run folder.",
        "The second process is refused. The message gives the process id of the first process.",
    ),
    "adapter not delivered": (
        "The weights of an adapter are missing or incomplete (verl#7495, ms-swift#9855).",
        "Loading the adapter fails, and the message names the missing file or matrix. The base model is never "
        "used in place of an adapter.",
    ),
    "adapter of another base": (
        "An adapter is used with another base model than the model of its training.",
        "The adapter is refused. Each adapter folder has a checksum of the weights of its base model.",
    ),
    "adapter rank mismatch": (
        "The rank in the config of an adapter, or in the request, differs from the rank of its matrices.",
        "The adapter is refused. The message names both ranks, and says what to do.",
    ),
    "merged twice": (
        "An adapter is added to its base model a second time (trl#6688).",
        "Merging works only with the unchanged base model, in float32, and a merged model is refused as base model "
        "of the adapter.",
    ),
    "adapter and whole model": (
        "A request for LoRA trains the whole model, or a request for the whole model trains an adapter (SkyRL#1077).",
        "Before the first step, the trainable parameters are compared with the request. A difference is an error.",
    ),
    "clock jumps": ("The system clock jumps back or forward.", "The results do not depend on the clock."),
}


def markdown(results: dict[str, tuple[int, int]]) -> str:
    """The matrix with (passed, all) tests of each row."""
    lines = ["| fault | what happens | tests passed |", "|---|---|---|"]
    for row, (fault, then) in FAULTS.items():
        passed, tests = results.get(row, (0, 0))
        lines.append(f"| {fault} | {then} | {f'{passed} of {tests}' if tests else 'NONE'} |")
    return "\n".join(lines)
