"""A run says before its first step that it does not fit into memory, with the numbers and the keys to lower."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from schoolhouse.algorithms.losses import negative_log_likelihood
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.settings import Optimizer
from schoolhouse.model.lora import Adapter, FrozenLinear, add_adapter, target_layers
from schoolhouse.policy import memory_check, sampling_memory
from schoolhouse.policy.memory_check import check_learning_memory, check_peak_memory, learning_need
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.types import Key, Message, Problem, SchoolError


@pytest.fixture
def memory(monkeypatch):
    """Sets the free memory in bytes."""

    def set_memory(num_bytes):
        for module in (memory_check, sampling_memory):
            monkeypatch.setattr(module, "free_memory", lambda _: num_bytes)

    return set_memory


def make_prompts(policy, count=6):
    problem = Problem("p", (Message("user", "what is 3 and 4?"),), "7")
    return [policy.conversation.prompt_rollout(problem, Key(0, "test", sample=i)) for i in range(count)]


def test_the_need_of_the_learner_counts_what_does_not_exist_yet(policy):
    numbers = sum(weight.numel() for weight in policy.decoder.parameters())
    before = learning_need(policy, 20, 70)
    assert (before.gradients, before.moments, before.tokens) == (4 * numbers, 8 * numbers, 60)
    rollouts = policy.extend(make_prompts(policy), 5)
    policy.update(pack(rollouts, token_mean(rollouts), 64), negative_log_likelihood(), 1e-3)
    after = learning_need(policy, 20, 70)
    assert (after.gradients, after.moments, after.activations) == (0, 0, before.activations)


def test_activations_grow_with_the_tokens_and_shrink_with_checkpointing(policy):
    small, large = learning_need(policy, 20, 20), learning_need(policy, 20, 2_000)
    assert large.activations == pytest.approx(100 * small.activations, rel=0.01)
    policy.decoder.activation_checkpointing = True
    assert learning_need(policy, 20, 2_000).activations < 0.7 * large.activations
    assert policy.decoder.activation_checkpointing


def test_measured_activations_are_what_the_forward_pass_saves(policy):
    saved = memory_check._saved_bytes(policy, 90)
    assert 90 * memory_check._activation_bytes(policy) == pytest.approx(saved, rel=0.05)


def test_frozen_weights_need_no_gradients(policy):
    for weight in policy.decoder.parameters():
        weight.requires_grad_(False)
    trained = policy.decoder.model.layers[-1].mlp.down_proj.weight.requires_grad_(True)
    need = learning_need(policy, 20, 70)
    assert (need.gradients, need.moments) == (4 * trained.numel(), 8 * trained.numel())


def test_copies_of_frozen_weights_are_counted_once(tiny_config, conversation, monkeypatch):
    def lora_policy():
        config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
        policy = Policy.create(config, conversation, precision="bfloat16", device="cpu")
        add_adapter(policy.decoder, Adapter(2, 32.0, target_layers(policy.decoder, "all"), "base", ""))
        return policy

    policy, need = lora_policy(), learning_need(lora_policy(), 20, 70)

    def free_memory(_):
        layers = [layer for layer in policy.decoder.modules() if isinstance(layer, FrozenLinear)]
        return need.total - sum(layer._copy[1].nbytes for layer in layers if layer._copy)

    monkeypatch.setattr(memory_check, "free_memory", free_memory)
    check_peak_memory(policy, 20, 70)
    assert free_memory(policy.device) < need.total
    policy = lora_policy()
    check_learning_memory(policy, 60)


def test_a_micro_batch_that_does_not_fit_is_an_error_before_it_is_tried(policy, memory, monkeypatch):
    monkeypatch.setattr(memory_check, "_try_largest_batch", lambda *_: pytest.fail("it was tried"))
    memory(100_000)
    message = (
        r"a micro-batch of 4,080 tokens needs [\d.]+ MB of memory \(gradients .*moments .*activations .*logits .*\), "
        "but only 0.1 MB of memory are free: lower `microbatch_tokens`, .*set `activation_checkpointing` to true"
    )
    with pytest.raises(SchoolError, match=message):
        check_peak_memory(policy, 120, 4_096)


def test_sampling_that_does_not_fit_is_an_error(policy, memory, monkeypatch):
    memory(learning_need(policy, 60, 60).total + 1)
    check_peak_memory(policy, 60, 60)
    monkeypatch.setattr(sampling_memory, "_LOGIT_COPIES", 10_000)
    with pytest.raises(SchoolError, match=r"sampling needs .* lower `max_new_tokens`"):
        check_peak_memory(policy, 60, 60, make_prompts(policy))


def test_a_note_tells_that_fewer_rollouts_are_sampled_together(policy, memory, monkeypatch, capsys):
    prompts = make_prompts(policy, 64)
    monkeypatch.setattr(sampling_memory, "_LOGIT_COPIES", 1_000)
    each = 1_000 * 4 * policy.decoder.config.vocab_size
    memory(int(learning_need(policy, 120, 120).total + 20 * each / sampling_memory.SHARE))
    check_peak_memory(policy, 120, 120, prompts[:8])
    assert not capsys.readouterr().err
    check_peak_memory(policy, 120, 120, prompts)
    note = capsys.readouterr().err
    assert "sampling 64 rollouts at the same time would need up to" in note
    assert "so 16 are sampled at the same time" in note  # four rounds
    assert "`sampling.max_new_tokens`" in note


@pytest.mark.fault("out of memory late")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS")
def test_a_failed_allocation_is_an_error_with_the_keys(tmp_path, policy):
    """A real process with a limited address space. Its computed need is replaced, so that the batch is tried."""
    policy.save(tmp_path)
    code = f"""
import resource, schoolhouse.policy.memory_check as check
from schoolhouse.policy.policy import Policy
from schoolhouse.types import SchoolError
policy = Policy.load({str(tmp_path)!r}, "float32")
check.check_peak_memory(policy, 100, 100)
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (20 << 20),) * 2)
check.free_memory = lambda _: 1 << 40
try:
    check.check_peak_memory(policy, 100, 100_000)
except SchoolError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "and there was not enough memory when the run tried it" in done.stdout, done.stderr
    assert "lower `microbatch_tokens`" in done.stdout


@pytest.mark.fault("out of memory late")
def test_the_command_says_before_the_run_what_does_not_fit(tmp_path, policy):
    policy.save(tmp_path / "model")
    command = [sys.executable, "-m", "schoolhouse", "train", "grpo", "--model", str(tmp_path / "model")]
    command += ["--task", "school:addition", "--sampling.max_new_tokens", "16", "--dir", str(tmp_path / "run")]
    environment = {**os.environ, "SCHOOLHOUSE_MEMORY_GB": "0.1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "of memory are free: lower `microbatch_tokens`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (Path(tmp_path) / "run" / "metrics.jsonl").exists()


def test_the_first_supervised_update_is_checked(policy, memory):
    rollouts = policy.extend(make_prompts(policy), 5)
    memory(1_000)
    with pytest.raises(SchoolError, match="learning from a micro-batch of .* lower `microbatch_tokens`"):
        supervised_update(policy, rollouts, Optimizer(), 0, 10, 64)
    memory(10**9)
    supervised_update(policy, rollouts, Optimizer(), 0, 10, 64)
    memory(1_000)
    supervised_update(policy, rollouts, Optimizer(), 1, 10, 64)


def test_other_errors_are_not_taken_for_missing_memory(policy, monkeypatch):
    monkeypatch.setattr(policy.decoder, "project", lambda _: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        check_peak_memory(policy, 20, 70)


def test_candidates_are_counted_and_tried(policy, monkeypatch, memory):
    plain, more = learning_need(policy, 20, 70), learning_need(policy, 20, 70, 8)
    assert more.activations - plain.activations == 60 * 8 * memory_check._CANDIDATE_BYTES
    assert more.logits == plain.logits * 4 // 3
    tried, batch_scores = [], policy.batch_scores
    monkeypatch.setattr(policy, "batch_scores", lambda *args: tried.append(args[0].candidates) or batch_scores(*args))
    check_peak_memory(policy, 20, 70, num_candidates=8)
    ((ids, _),) = tried
    assert ids.shape == (3 * 19, 8)
    assert all(weight.grad is None for weight in policy.decoder.parameters())


def test_recorded_candidates_leave_less_memory_for_sampling(policy, memory, monkeypatch, capsys):
    prompts = make_prompts(policy, 64)
    recorded = 64 * (120 - len(prompts[0])) * 8 * sampling_memory.CANDIDATE_BYTES
    reserved = []
    choose = memory_check.choose_num_slots
    monkeypatch.setattr(memory_check, "choose_num_slots", lambda *args: reserved.append(args[3]) or choose(*args))
    for count in (0, 8):
        check_peak_memory(policy, 120, 120, prompts, num_candidates=count)
    assert reserved[1] - reserved[0] == recorded
