"""The three verbs agree with each other, and nothing but memory depends on how a step is cut."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from schoolhouse.algorithms.losses import clipped_surrogate, negative_log_likelihood
from schoolhouse.algorithms.packing import pack, sequence_mean, token_mean
from schoolhouse.algorithms.settings import Optimizer
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.policy import scoring
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.types import NAN, Demonstration, Key, Message, Problem, SchoolError


def ask(policy, step=0, problems=3, samples=4):
    """Prefixes of a few problems of different lengths, [P*G]."""
    asked = []
    for i in range(problems):
        problem = Problem(f"{step}-{i}", (Message("user", f"{i} and {step}?" * (1 + i)),), str(i))
        asked += [policy.conversation.prompt_rollout(problem, Key(0, "test", step, i, g)) for g in range(samples)]
    return asked


def sample(policy, step=0, **options):
    return policy.extend(ask(policy, step), 12, **options)


def advantages(rollouts):
    """Something different for each rollout: the parity of what it said, and a little of its length."""
    return [np.full(len(r), (sum(r.last_turn()) % 2) - 0.5 + 0.01 * len(r), np.float32) for r in rollouts]


def batches_of(rollouts, token_budget=16_384, weigh=token_mean):
    sampled = [r.logprob for r in rollouts]
    return pack(rollouts, weigh(rollouts), token_budget, advantage=advantages(rollouts), sampled=sampled)


def learn(policy, rollouts, rate=1e-2, **cut):
    return policy.update(batches_of(rollouts, **cut), clipped_surrogate(on_policy=True), rate)


def weights_of(policy):
    return {name: weight.detach().clone() for name, weight in policy.decoder.named_parameters()}


def apart(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture
def twin(policy):
    """Another policy with the same weights."""
    return Policy.create(policy.decoder.config, policy.conversation, precision="float32")


# --- creating


def test_the_same_seed_gives_the_same_weights(policy, twin):
    assert apart(weights_of(policy), weights_of(twin)) == 0.0
    other = Policy.create(policy.decoder.config, policy.conversation, seed=1, precision="float32")
    assert apart(weights_of(policy), weights_of(other)) > 0.0


def test_weights_decay_in_matrices_alone(conversation, tiny_shape):
    shape = tiny_shape(vocab_size=conversation.tokenizer.size)
    policy = Policy.create(shape, conversation, precision="float32", optimizer=Optimizer(weight_decay=0.5))
    before = weights_of(policy)
    policy.update(batches_of(sample(policy)), lambda batch, scores: scores.logprob * 0.0, learning_rate=0.1)
    for name, after in weights_of(policy).items():
        expected = before[name] if after.dim() == 1 else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(after, expected, atol=1e-7), name


# --- scoring


def test_scores_are_log_softmax_and_entropy_at_the_token_they_are_about(policy):
    rollouts = sample(policy, temperature=1.3)
    for rollout, scores in zip(rollouts, policy.score(rollouts, temperature=1.3), strict=True):
        memory = PackedAttention([len(rollout)])
        tokens = torch.tensor(rollout.tokens)
        with torch.no_grad():
            of_next = (policy.decoder.project(policy.decoder(tokens, memory.positions, memory)) / 1.3).log_softmax(-1)
        for t, written in enumerate(rollout.loss_mask):
            expected = float(of_next[t - 1, tokens[t]]) if written else 0.0
            entropy = float(-(of_next[t - 1].exp() * of_next[t - 1]).sum()) if written else 0.0
            assert scores.logprob[t] == pytest.approx(expected, abs=1e-5)
            assert scores.entropy[t] == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("budget", [1, 61, 16_384])
def test_scores_come_back_in_order_however_they_are_cut(policy, budget):
    rollouts = sample(policy)
    rollouts = [r for pair in zip(rollouts[:6], rollouts[6:][::-1], strict=True) for r in pair]  # long and short
    for rollout, scores in zip(rollouts, policy.score(rollouts, microbatch_tokens=budget), strict=True):
        start = rollout.turns[0]
        assert scores.logprob[start:] == pytest.approx(np.array(rollout.logprob[start:]), abs=1e-5)
        assert not scores.logprob[:start].any()


def test_score_equals_what_an_update_sees(policy):
    rollouts = sample(policy)
    scored = policy.score(rollouts)
    seen = {}

    def listen(batch, scores):
        for row in batch["row"].unique().tolist():
            seen[int(row)] = scores.logprob.detach()[batch["row"] == row].numpy()
        return scores.logprob

    rows = [np.full(len(r), i, np.float32) for i, r in enumerate(rollouts)]
    policy.update(pack(rollouts, token_mean(rollouts), 100, row=rows), listen, learning_rate=0.0)
    for i, scores in enumerate(scored):
        assert seen[i] == pytest.approx(scores.logprob, abs=1e-5)


# --- updating


@pytest.mark.parametrize("weigh", [token_mean, sequence_mean])
@pytest.mark.parametrize("budget", [1, 61])
@pytest.mark.fault("accumulation changes the loss")
def test_how_a_step_is_cut_changes_memory_alone(policy, twin, weigh, budget):
    rollouts = sample(policy)
    whole, cut = batches_of(rollouts, weigh=weigh), batches_of(rollouts, budget, weigh)
    assert len(whole) == 1 < len(cut)
    before = weights_of(policy)
    one = policy.update(whole, clipped_surrogate(on_policy=True), 1e-3)
    other = twin.update(cut, clipped_surrogate(on_policy=True), 1e-3)
    assert apart(weights_of(policy), weights_of(twin)) < 3e-6
    assert apart(weights_of(policy), before) > 9e-4
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("budget", [61, 16_384])
def test_what_an_update_tells_are_means_over_trained_tokens(policy, budget):
    rollouts = sample(policy)
    scored = policy.score(rollouts)
    rows = [
        (float(s.entropy[t]), len(r))
        for r, s in zip(rollouts, scored, strict=True)
        for t in range(len(r))
        if r.loss_mask[t]
    ]

    def watch(batch, scores):
        long = torch.repeat_interleave(torch.as_tensor(batch.lengths), torch.as_tensor(batch.lengths))
        chosen = batch.weight > 0
        return {"tokens": float(chosen.sum()), "length": float(long[chosen].float().mean())}

    told = policy.update(batches_of(rollouts, budget), clipped_surrogate(on_policy=True), 0.0, metrics_fn=watch)
    assert told["trained_tokens"] == len(rows)
    assert told["entropy"] == pytest.approx(sum(entropy for entropy, _ in rows) / len(rows), rel=1e-4)
    assert told["length"] == pytest.approx(sum(length for _, length in rows) / len(rows), rel=1e-4)


@pytest.mark.parametrize("budget", [40, 16_384])
def test_a_prompt_read_once_gives_the_same_update(conversation, tiny_shape, budget):
    one, other = (
        Policy.create(
            tiny_shape(vocab_size=conversation.tokenizer.size, head_dim=32), conversation, precision="float32"
        )
        for _ in range(2)
    )
    if not one.shares_prompts:
        pytest.skip("needs a C compiler")
    other.packed_attention = PackedAttention
    rollouts = sample(one)
    columns: dict[str, Any] = {"advantage": advantages(rollouts), "sampled": [r.logprob for r in rollouts]}
    stats = []
    for policy in (one, other):
        batches = pack(rollouts, token_mean(rollouts), budget, share_prompts=policy.shares_prompts, **columns)
        stats.append(policy.update(batches, clipped_surrogate(on_policy=True), 1e-3))
    assert stats[0] == pytest.approx(stats[1], rel=1e-4, abs=1e-5)
    for (name, ours), theirs in zip(one.decoder.named_parameters(), other.decoder.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6), name


@pytest.mark.fault("out of memory late")
def test_a_rehearsal_reads_the_heaviest_batch_and_leaves_nothing_behind(policy, monkeypatch):
    read, before = [], weights_of(policy)
    forward = policy.decoder.forward
    monkeypatch.setattr(policy.decoder, "forward", lambda t, p, m: read.append(len(t)) or forward(t, p, m))
    policy.check_peak_memory(20, 70)
    policy.check_peak_memory(10**6, 70)  # longer than the model reads
    assert read == [60, policy.max_seq_len]
    assert apart(weights_of(policy), before) == 0.0
    assert all(weight.grad is None for weight in policy.decoder.parameters())
    assert policy.version == 0


def test_recomputed_activations_give_the_same_update_with_less_kept(policy, twin):
    def kept(learner):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            learner.update(batches_of(rollouts), clipped_surrogate(on_policy=True), 1e-3)
        return sum(sizes)

    rollouts = sample(policy)
    twin.decoder.activation_checkpointing = True
    assert kept(twin) < 0.5 * kept(policy)
    assert apart(weights_of(policy), weights_of(twin)) == 0.0


def test_logits_in_pieces_give_the_same_loss_and_gradient(policy, twin, monkeypatch):
    rollouts = sample(policy)
    whole = learn(policy, rollouts, rate=0.0)
    pieces = []
    read_out = scoring.logprobs_and_entropy
    monkeypatch.setattr(
        scoring, "logprobs_and_entropy", lambda *args: pieces.append(len(args[1])) or read_out(*args)
    )
    monkeypatch.setattr(scoring, "_ROWS", 1)
    monkeypatch.setattr(scoring, "_CHUNK", 7 * twin.decoder.config.vocab_size)
    assert learn(twin, rollouts, rate=0.0) == pytest.approx(whole, rel=1e-5, abs=1e-7)
    assert max(pieces) == 7
    for (name, one), other in zip(policy.decoder.named_parameters(), twin.decoder.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-7), name


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.fault("gradient not finite")
def test_a_gradient_that_is_not_finite_changes_nothing(policy, twin, poison):
    rollouts = sample(policy)
    for each in (policy, twin):
        learn(each, rollouts)
    before = weights_of(policy)
    with pytest.raises(SchoolError, match="gradient of update 1 is"):
        policy.update(batches_of(rollouts), lambda batch, scores: scores.logprob * poison, 1e-2)
    assert apart(weights_of(policy), before) == 0.0
    assert policy.version == 1
    learn(policy, rollouts)
    learn(twin, rollouts)
    assert apart(weights_of(policy), weights_of(twin)) == 0.0  # the moments were not touched either


def test_the_norm_of_the_gradient_is_clipped_and_reported(policy, twin):
    rollouts = sample(policy)
    free = policy.update(batches_of(rollouts), clipped_surrogate(on_policy=True), 0.0, max_grad_norm=1e9)
    told = twin.update(batches_of(rollouts), clipped_surrogate(on_policy=True), 0.0, max_grad_norm=free["grad_norm"] / 4)
    assert told["grad_norm"] == pytest.approx(free["grad_norm"])
    for one, other in zip(policy.decoder.parameters(), twin.decoder.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad / 4, other.grad, rtol=1e-4, atol=1e-8)


def test_an_update_does_what_the_objective_says(policy):
    problem = Problem("a", (Message("user", "1 and 2?"),), "3")
    taught = [policy.conversation.demonstrate(Demonstration(problem, "1 + 2", "3"), Key(0, "teach"))]
    before = policy.score(taught)[0].logprob.sum()
    losses = [
        policy.update(pack(taught, token_mean(taught)), negative_log_likelihood(), 1e-2)["loss"] for _ in range(20)
    ]
    assert losses[0] == pytest.approx(-before / sum(taught[0].loss_mask), rel=1e-5)
    assert losses[-1] < 0.2 * losses[0]
    (said,) = policy.extend([policy.conversation.prompt_rollout(problem, Key(0, "ask"))], 20, temperature=0.0)
    assert said.tokens == taught[0].tokens
    assert said.finish_reason == "stop"


@pytest.mark.fault("tool text in a reward")
def test_what_stands_at_prompts_takes_no_part(policy):
    rollouts = sample(policy)
    rows = [np.where(r.loss_mask, 1.0, NAN).astype(np.float32) for r in rollouts]
    stats = policy.update(pack(rollouts, token_mean(rollouts), advantage=rows), clipped_surrogate(on_policy=True), 1e-3)
    assert stats["trained_tokens"] == sum(sum(r.loss_mask) for r in rollouts)
    assert math.isfinite(stats["loss"])


# --- sampler and learner


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.fault("sampler and learner disagree")
def test_the_gap_between_sampler_and_learner_is_rounding(policy, temperature):
    for step in range(2):
        rollouts = sample(policy, step, temperature=temperature, slots=5)
        objective = clipped_surrogate(on_policy=True)
        stats = policy.update(batches_of(rollouts), objective, 1e-2, temperature=temperature)
        assert 0 < stats["logprob_gap"] < 1e-5
    assert policy.update(batches_of(rollouts), objective, 0.0)["logprob_gap"] > 1e-3  # these are old by now


@pytest.mark.fault("foreign rollouts")
def test_rollouts_that_are_not_its_own_stop_the_run_before_the_weights_change(policy):
    rollouts = sample(policy)
    learn(policy, rollouts)  # now they are a version old
    before = weights_of(policy)
    with pytest.raises(SchoolError, match=r"apart in the mean before update 1 \(gap_limit 0.001\)"):
        policy.update(batches_of(rollouts), clipped_surrogate(on_policy=True), 1e-2, gap_limit=1e-3)
    assert apart(weights_of(policy), before) == 0.0
    assert policy.version == 1


def test_an_answer_may_have_a_length_of_its_own(policy):
    lengths = [1 + i % 4 for i in range(len(ask(policy)))]
    said = policy.extend(ask(policy), lengths, stop=())
    assert [len(r.last_turn()) for r in said] == lengths
    with pytest.raises(SchoolError, match="2 lengths for 12 rollouts"):
        policy.extend(ask(policy), [3, 3])


def test_a_rollout_remembers_the_version_that_wrote_it(policy):
    assert {r.policy_version for r in sample(policy)} == {0}
    learn(policy, sample(policy))
    assert {r.policy_version for r in sample(policy)} == {1}


def test_without_lag_the_stream_is_the_plain_loop_to_the_bit(policy, twin):
    plain = []
    for step in range(3):
        rollouts = sample(policy, step)
        plain.append((rollouts, learn(policy, rollouts)))
    source = RolloutStream(twin, lambda step: ask(twin, step), lambda p, prefixes: p.extend(prefixes, 12)).iter_steps(range(3))
    streamed = [(rollouts, learn(twin, rollouts)) for _, rollouts in source]
    for (one, learned), (other, also) in zip(plain, streamed, strict=True):
        assert [r.tokens for r in one] == [r.tokens for r in other]
        assert learned == also
    assert apart(weights_of(policy), weights_of(twin)) == 0.0


# --- coming back


@pytest.mark.fault("killed")
def test_a_policy_that_was_saved_goes_on_as_if_it_never_stopped(policy, tmp_path):
    for step in range(2):
        learn(policy, sample(policy, step))
    policy.save(tmp_path / "model")
    torch.save(policy.state_dict(), tmp_path / "trainer.pt")

    again = Policy.load(tmp_path / "model", precision="float32")
    again.load_state_dict(torch.load(tmp_path / "trainer.pt"))
    assert apart(weights_of(policy), weights_of(again)) == 0.0
    assert again.version == 2
    for step in range(2, 4):
        one, other = sample(policy, step), sample(again, step)
        assert [(r.tokens, r.logprob[r.turns[0] :]) for r in one] == [
            (r.tokens, r.logprob[r.turns[0] :]) for r in other
        ]
        assert learn(policy, one) == learn(again, other)
    assert apart(weights_of(policy), weights_of(again)) == 0.0


def test_without_the_moments_it_would_not(policy, tmp_path):
    for step in range(2):
        learn(policy, sample(policy, step))
    policy.save(tmp_path)
    again = Policy.load(tmp_path, precision="float32")
    rollouts = sample(policy, 2)
    learn(policy, rollouts)
    learn(again, rollouts)
    assert apart(weights_of(policy), weights_of(again)) > 1e-4


def test_another_family_samples_and_learns_and_comes_back(conversation, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = conversation.tokenizer.size
    numbers = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model("olmo2", **numbers, num_attention_heads=4, max_position_embeddings=128)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    conversation.save(tmp_path / "theirs")

    policy = Policy.load(tmp_path / "theirs", precision="float32")
    for step in range(2):
        stats = learn(policy, sample(policy, step))
        assert stats["logprob_gap"] < 1e-5
    policy.save(tmp_path / "ours")
    again = Policy.load(tmp_path / "ours", precision="float32")
    assert apart(weights_of(policy), weights_of(again)) == 0.0
