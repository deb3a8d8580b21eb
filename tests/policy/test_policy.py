"""The three verbs agree with each other, and the split into batches changes memory alone."""

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
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.types import NAN, Demonstration, Key, Message, Problem, SchoolError


def make_group_prompts(policy, step=0, problems=3, samples=4):
    """Prompts of a few problems of different lengths, `samples` of each."""
    prompts = []
    for i in range(problems):
        problem = Problem(f"{step}-{i}", (Message("user", f"{i} and {step}?" * (1 + i)),), str(i))
        prompts += [policy.conversation.prompt_rollout(problem, Key(0, "test", step, i, g)) for g in range(samples)]
    return prompts


def sample(policy, step=0, **options):
    return policy.extend(make_group_prompts(policy, step), 12, **options)


def advantages(rollouts):
    """A different number for each rollout: the parity of its token ids, and a little of its length."""
    return [np.full(len(r), (sum(r.last_turn()) % 2) - 0.5 + 0.01 * len(r), np.float32) for r in rollouts]


def make_batches(rollouts, microbatch_tokens=16_384, aggregation=token_mean):
    sampled = [r.logprob for r in rollouts]
    weight = aggregation(rollouts)
    return pack(rollouts, weight, microbatch_tokens, advantage=advantages(rollouts), sampled=sampled)


def update(policy, rollouts, learning_rate=1e-2):
    return policy.update(make_batches(rollouts), clipped_surrogate(on_policy=True), learning_rate)


def weights_of(policy):
    return {name: weight.detach().clone() for name, weight in policy.decoder.named_parameters()}


def max_difference(weights, other_weights):
    return max(float((weights[name] - other_weights[name]).abs().max()) for name in weights)


def assert_same_gradients(policy, other, scale=1.0, **tolerance):
    pairs = zip(policy.decoder.named_parameters(), other.decoder.parameters(), strict=True)
    for (name, weight), other_weight in pairs:
        assert weight.grad is not None
        assert other_weight.grad is not None
        assert torch.allclose(weight.grad * scale, other_weight.grad, **tolerance), name


@pytest.fixture
def twin(policy):
    """Another policy with the same weights."""
    return Policy.create(policy.decoder.config, policy.conversation, precision="float32")


# --- creating


def test_the_same_seed_gives_the_same_weights(policy, twin):
    assert max_difference(weights_of(policy), weights_of(twin)) == 0.0
    other = Policy.create(policy.decoder.config, policy.conversation, seed=1, precision="float32")
    assert max_difference(weights_of(policy), weights_of(other)) > 0.0


def test_weight_decay_applies_to_matrices_alone(conversation, tiny_config):
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
    policy = Policy.create(config, conversation, precision="float32", optimizer=Optimizer(weight_decay=0.5))
    before = weights_of(policy)
    policy.update(make_batches(sample(policy)), lambda batch, scores: scores.logprob * 0.0, learning_rate=0.1)
    for name, after in weights_of(policy).items():
        expected = before[name] if after.dim() == 1 else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(after, expected, atol=1e-7), name


# --- scoring


def test_scores_are_log_softmax_and_entropy_at_the_token_they_are_about(policy):
    rollouts = sample(policy, temperature=1.3)
    for rollout, scores in zip(rollouts, policy.score(rollouts, temperature=1.3), strict=True):
        packed = PackedAttention([len(rollout)])
        tokens = torch.tensor(rollout.tokens)
        with torch.no_grad():
            logits = policy.decoder.project(policy.decoder(tokens, packed.positions, packed))
        next_logprobs = (logits / 1.3).log_softmax(-1)
        for t, in_loss_mask in enumerate(rollout.loss_mask):
            row = next_logprobs[t - 1]
            expected = float(row[tokens[t]]) if in_loss_mask else 0.0
            entropy = float(-(row.exp() * row).sum()) if in_loss_mask else 0.0
            assert scores.logprob[t] == pytest.approx(expected, abs=1e-5)
            assert scores.entropy[t] == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("microbatch_tokens", [1, 61, 16_384])
def test_scores_come_back_in_order_for_every_batch_size(policy, microbatch_tokens):
    rollouts = sample(policy)
    rollouts = [r for pair in zip(rollouts[:6], rollouts[6:][::-1], strict=True) for r in pair]  # long and short
    for rollout, scores in zip(rollouts, policy.score(rollouts, microbatch_tokens=microbatch_tokens), strict=True):
        start = rollout.turns[0]
        assert scores.logprob[start:] == pytest.approx(np.array(rollout.logprob[start:]), abs=1e-5)
        assert not scores.logprob[:start].any()


def test_score_gives_the_log_probabilities_of_an_update(policy):
    rollouts = sample(policy)
    scored = policy.score(rollouts)
    update_logprobs = {}

    def record(batch, scores):
        for row in batch["row"].unique().tolist():
            update_logprobs[int(row)] = scores.logprob.detach()[batch["row"] == row].numpy()
        return scores.logprob

    rows = [np.full(len(r), i, np.float32) for i, r in enumerate(rollouts)]
    policy.update(pack(rollouts, token_mean(rollouts), 100, row=rows), record, learning_rate=0.0)
    for i, scores in enumerate(scored):
        assert update_logprobs[i] == pytest.approx(scores.logprob, abs=1e-5)


# --- updating


@pytest.mark.parametrize("aggregation", [token_mean, sequence_mean])
@pytest.mark.parametrize("microbatch_tokens", [1, 61])
@pytest.mark.fault("accumulation changes the loss")
def test_the_split_into_batches_does_not_change_an_update(policy, twin, aggregation, microbatch_tokens):
    rollouts = sample(policy)
    whole = make_batches(rollouts, aggregation=aggregation)
    split = make_batches(rollouts, microbatch_tokens, aggregation)
    assert len(whole) == 1 < len(split)
    before = weights_of(policy)
    metrics = policy.update(whole, clipped_surrogate(on_policy=True), 1e-3)
    split_metrics = twin.update(split, clipped_surrogate(on_policy=True), 1e-3)
    assert max_difference(weights_of(policy), weights_of(twin)) < 3e-6
    assert max_difference(weights_of(policy), before) > 9e-4
    assert metrics == pytest.approx(split_metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("microbatch_tokens", [61, 16_384])
def test_metrics_are_means_over_trained_tokens(policy, microbatch_tokens):
    rollouts = sample(policy)
    scored = policy.score(rollouts)
    trained = [
        (float(scores.entropy[t]), len(rollout))
        for rollout, scores in zip(rollouts, scored, strict=True)
        for t in range(len(rollout))
        if rollout.loss_mask[t]
    ]

    def mean_length(batch, scores):
        lengths = torch.repeat_interleave(torch.as_tensor(batch.lengths), torch.as_tensor(batch.lengths))
        chosen = batch.weight > 0
        return {"tokens": float(chosen.sum()), "length": float(lengths[chosen].float().mean())}

    batches = make_batches(rollouts, microbatch_tokens)
    metrics = policy.update(batches, clipped_surrogate(on_policy=True), 0.0, metrics_fn=mean_length)
    assert metrics["trained_tokens"] == len(trained)
    assert metrics["entropy"] == pytest.approx(sum(entropy for entropy, _ in trained) / len(trained), rel=1e-4)
    assert metrics["length"] == pytest.approx(sum(length for _, length in trained) / len(trained), rel=1e-4)


@pytest.mark.parametrize("microbatch_tokens", [40, 16_384])
def test_kl_to_the_reference_is_recorded_whenever_its_logprobs_are_there(policy, microbatch_tokens):
    rollouts = sample(policy)
    reference = [[0.5 * logprob - 0.1 for logprob in rollout.logprob] for rollout in rollouts]
    pairs = [
        pair
        for rollout, row in zip(rollouts, reference, strict=True)
        for *pair, mask in zip(rollout.logprob, row, rollout.loss_mask, strict=True)
        if mask
    ]
    expected = sum(math.exp(there - here) - (there - here) - 1 for here, there in pairs) / len(pairs)

    def metrics_with(**more):
        columns: Any = {"advantage": advantages(rollouts), "reference": reference, **more}
        batches = pack(rollouts, token_mean(rollouts), microbatch_tokens, **columns)
        return policy.update(batches, clipped_surrogate(on_policy=True), 0.0)

    sampled = [rollout.logprob for rollout in rollouts]
    assert metrics_with(sampled=sampled)["kl_to_reference"] == pytest.approx(expected, rel=1e-4)
    assert "kl_to_reference" not in metrics_with()  # not sampled from the policy
    assert "kl_to_reference" not in update(policy, rollouts, 0.0)


@pytest.mark.parametrize("microbatch_tokens", [40, 16_384])
def test_shared_prompts_give_the_same_update(conversation, tiny_config, microbatch_tokens):
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size, head_dim=32)
    sharing, other = (Policy.create(config, conversation, precision="float32") for _ in range(2))
    if not sharing.shares_prompts:
        pytest.skip("needs a C compiler")
    other.packed_attention = PackedAttention
    rollouts = sample(sharing)
    columns: dict[str, Any] = {"advantage": advantages(rollouts), "sampled": [r.logprob for r in rollouts]}
    metrics = []
    for policy in (sharing, other):
        share_prompts = policy.shares_prompts
        batches = pack(rollouts, token_mean(rollouts), microbatch_tokens, share_prompts=share_prompts, **columns)
        metrics.append(policy.update(batches, clipped_surrogate(on_policy=True), 1e-3))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-5)
    assert_same_gradients(sharing, other, atol=1e-6)


@pytest.mark.fault("out of memory late")
def test_check_peak_memory_reads_the_largest_batch_and_changes_nothing(policy, monkeypatch):
    tokens_read, before = [], weights_of(policy)
    forward = policy.decoder.forward
    monkeypatch.setattr(
        policy.decoder, "forward", lambda tokens, *rest: tokens_read.append(len(tokens)) or forward(tokens, *rest)
    )
    check_peak_memory(policy, 20, 70)
    check_peak_memory(policy, 10**6, 70)  # longer than the model reads
    assert tokens_read == [16, 48, 60, 16, 48, policy.max_seq_len]  # two small passes measure the activations
    assert max_difference(weights_of(policy), before) == 0.0
    assert all(weight.grad is None for weight in policy.decoder.parameters())
    assert policy.version == 0


def test_activation_checkpointing_gives_the_same_update_with_fewer_saved_tensors(policy, twin):
    def saved_numbers(learner):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            learner.update(make_batches(rollouts), clipped_surrogate(on_policy=True), 1e-3)
        return sum(sizes)

    rollouts = sample(policy)
    twin.decoder.activation_checkpointing = True
    assert saved_numbers(twin) < 0.5 * saved_numbers(policy)
    assert max_difference(weights_of(policy), weights_of(twin)) == 0.0


def test_chunks_of_logits_give_the_same_loss_and_gradient(policy, twin, monkeypatch):
    rollouts = sample(policy)
    whole = update(policy, rollouts, learning_rate=0.0)
    chunk_sizes = []
    logprobs_and_entropy = scoring.logprobs_and_entropy
    monkeypatch.setattr(
        scoring,
        "logprobs_and_entropy",
        lambda *args: chunk_sizes.append(len(args[1])) or logprobs_and_entropy(*args),
    )
    monkeypatch.setattr(scoring, "_MIN_CHUNK_TOKENS", 1)
    monkeypatch.setattr(scoring, "_CHUNK_LOGITS", 7 * twin.decoder.config.vocab_size)
    assert update(twin, rollouts, learning_rate=0.0) == pytest.approx(whole, rel=1e-5, abs=1e-7)
    assert max(chunk_sizes) == 7
    assert_same_gradients(policy, twin, atol=1e-7)


@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
@pytest.mark.fault("gradient not finite")
def test_a_gradient_that_is_not_finite_changes_nothing(policy, twin, bad_value):
    rollouts = sample(policy)
    for each in (policy, twin):
        update(each, rollouts)
    before = weights_of(policy)
    with pytest.raises(SchoolError, match="gradient norm of update 1 is"):
        policy.update(make_batches(rollouts), lambda batch, scores: scores.logprob * bad_value, 1e-2)
    assert max_difference(weights_of(policy), before) == 0.0
    assert policy.version == 1
    update(policy, rollouts)
    update(twin, rollouts)
    assert max_difference(weights_of(policy), weights_of(twin)) == 0.0  # the moments were not changed either


def test_the_gradient_norm_is_clipped_and_reported(policy, twin):
    rollouts = sample(policy)
    loss_fn = clipped_surrogate(on_policy=True)
    unclipped = policy.update(make_batches(rollouts), loss_fn, 0.0, max_grad_norm=1e9)
    clipped = twin.update(make_batches(rollouts), loss_fn, 0.0, max_grad_norm=unclipped["grad_norm"] / 4)
    assert clipped["grad_norm"] == pytest.approx(unclipped["grad_norm"])
    assert_same_gradients(policy, twin, scale=1 / 4, rtol=1e-4, atol=1e-8)


def test_updates_raise_the_likelihood_of_a_demonstration(policy):
    problem = Problem("a", (Message("user", "1 and 2?"),), "3")
    rollouts = [policy.conversation.demonstration_rollout(Demonstration(problem, "1 + 2", "3"), Key(0, "teach"))]
    before = policy.score(rollouts)[0].logprob.sum()
    losses = [
        policy.update(pack(rollouts, token_mean(rollouts)), negative_log_likelihood(), 1e-2)["loss"] for _ in range(20)
    ]
    assert losses[0] == pytest.approx(-before / sum(rollouts[0].loss_mask), rel=1e-5)
    assert losses[-1] < 0.2 * losses[0]
    prompt = policy.conversation.prompt_rollout(problem, Key(0, "ask"))
    (greedy,) = policy.extend([prompt], 20, temperature=0.0)
    assert greedy.tokens == rollouts[0].tokens
    assert greedy.finish_reason == "stop"


@pytest.mark.fault("tool text in a reward")
def test_values_at_prompt_tokens_do_not_change_an_update(policy):
    rollouts = sample(policy)
    rows = [np.where(r.loss_mask, 1.0, NAN).astype(np.float32) for r in rollouts]
    batches = pack(rollouts, token_mean(rollouts), advantage=rows)
    metrics = policy.update(batches, clipped_surrogate(on_policy=True), 1e-3)
    assert metrics["trained_tokens"] == sum(sum(r.loss_mask) for r in rollouts)
    assert math.isfinite(metrics["loss"])


# --- sampler and learner


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.fault("sampler and learner disagree")
def test_the_gap_between_sampler_and_learner_is_rounding(policy, temperature):
    loss_fn = clipped_surrogate(on_policy=True)
    for step in range(2):
        rollouts = sample(policy, step, temperature=temperature, num_slots=5)
        metrics = policy.update(make_batches(rollouts), loss_fn, 1e-2, temperature=temperature)
        assert 0 < metrics["logprob_gap"] < 1e-5
    assert policy.update(make_batches(rollouts), loss_fn, 0.0)["logprob_gap"] > 1e-3  # these are old by now


@pytest.mark.fault("foreign rollouts")
def test_rollouts_of_other_weights_are_an_error_before_the_weights_change(policy):
    rollouts = sample(policy)
    update(policy, rollouts)  # now they are a version old
    before = weights_of(policy)
    with pytest.raises(SchoolError, match=r"on average before update 1, but `max_logprob_gap` is 0.001"):
        policy.update(make_batches(rollouts), clipped_surrogate(on_policy=True), 1e-2, max_logprob_gap=1e-3)
    assert max_difference(weights_of(policy), before) == 0.0
    assert policy.version == 1


def test_each_rollout_may_have_its_own_max_new_tokens(policy):
    prompts = make_group_prompts(policy)
    lengths = [1 + i % 4 for i in range(len(prompts))]
    rollouts = policy.extend(prompts, lengths, stop_ids=())
    assert [len(r.last_turn()) for r in rollouts] == lengths
    with pytest.raises(SchoolError, match="`max_new_tokens` has 2 values, but there are 12 rollouts"):
        policy.extend(prompts, [3, 3])


def test_a_rollout_holds_the_version_that_sampled_it(policy):
    assert {r.policy_version for r in sample(policy)} == {0}
    update(policy, sample(policy))
    assert {r.policy_version for r in sample(policy)} == {1}


def test_without_lag_the_stream_equals_the_plain_loop_to_the_bit(policy, twin):
    plain = []
    for step in range(3):
        rollouts = sample(policy, step)
        plain.append((rollouts, update(policy, rollouts)))
    stream = RolloutStream(
        twin, lambda step: make_group_prompts(twin, step), lambda policy, prompts: policy.extend(prompts, 12)
    )
    streamed = [(rollouts, update(twin, rollouts)) for _, rollouts in stream.iter_steps(range(3))]
    for (rollouts, metrics), (streamed_rollouts, streamed_metrics) in zip(plain, streamed, strict=True):
        assert [r.tokens for r in rollouts] == [r.tokens for r in streamed_rollouts]
        assert metrics == streamed_metrics
    assert max_difference(weights_of(policy), weights_of(twin)) == 0.0


# --- resuming


@pytest.mark.fault("killed")
def test_a_saved_policy_continues_as_if_it_had_not_stopped(policy, tmp_path):
    for step in range(2):
        update(policy, sample(policy, step))
    policy.save(tmp_path / "model")
    torch.save(policy.state_dict(), tmp_path / "trainer.pt")

    resumed = Policy.load(tmp_path / "model", precision="float32")
    resumed.load_state_dict(torch.load(tmp_path / "trainer.pt"))
    assert max_difference(weights_of(policy), weights_of(resumed)) == 0.0
    assert resumed.version == 2
    for step in range(2, 4):
        rollouts, resumed_rollouts = sample(policy, step), sample(resumed, step)
        assert [(r.tokens, r.logprob[r.turns[0] :]) for r in rollouts] == [
            (r.tokens, r.logprob[r.turns[0] :]) for r in resumed_rollouts
        ]
        assert update(policy, rollouts) == update(resumed, resumed_rollouts)
    assert max_difference(weights_of(policy), weights_of(resumed)) == 0.0


def test_without_the_moments_it_would_continue_differently(policy, tmp_path):
    for step in range(2):
        update(policy, sample(policy, step))
    policy.save(tmp_path)
    resumed = Policy.load(tmp_path, precision="float32")
    rollouts = sample(policy, 2)
    update(policy, rollouts)
    update(resumed, rollouts)
    assert max_difference(weights_of(policy), weights_of(resumed)) > 1e-4


def test_a_policy_of_another_model_type_samples_learns_and_loads(conversation, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vocab_size = conversation.tokenizer.vocab_size
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model("olmo2", **sizes, num_attention_heads=4, max_position_embeddings=128)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "original")
    conversation.save(tmp_path / "original")

    policy = Policy.load(tmp_path / "original", precision="float32")
    for step in range(2):
        assert update(policy, sample(policy, step))["logprob_gap"] < 1e-5
    policy.save(tmp_path / "trained")
    loaded = Policy.load(tmp_path / "trained", precision="float32")
    assert max_difference(weights_of(policy), weights_of(loaded)) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [7, 1_000])
def test_the_learner_computes_the_log_probabilities_of_candidates(policy, twin, monkeypatch, temperature, chunk):
    monkeypatch.setattr(scoring, "_MIN_CHUNK_TOKENS", 1)
    monkeypatch.setattr(scoring, "_CHUNK_LOGITS", chunk * policy.decoder.config.vocab_size)
    rollouts = sample(policy, temperature=temperature, num_candidates=4)
    (batch,) = make_batches(rollouts)
    scores = policy.batch_scores(batch, temperature)
    ids, sampled = batch.candidates
    assert ids.shape == sampled.shape == (int(batch.loss_mask.sum()), 4)
    assert torch.allclose(scores.candidates.detach(), sampled, atol=1e-4)
    coefficients = torch.linspace(-1.0, 1.0, 4)
    (scores.candidates * coefficients).sum().backward()

    targets = batch.loss_mask.nonzero()[:, 0]
    packed = PackedAttention(batch.lengths)
    hidden = twin.decoder(batch.tokens, packed.positions, packed)
    logprob = (twin.decoder.project(hidden[targets - 1]) / temperature).log_softmax(-1).gather(1, ids)
    assert torch.allclose(scores.candidates, logprob, atol=1e-5)
    (logprob * coefficients).sum().backward()
    assert_same_gradients(policy, twin, atol=1e-4)


def test_scoring_computes_no_candidates(policy, monkeypatch):
    rollouts = sample(policy, num_candidates=4)
    found = []
    batch_scores = policy.batch_scores
    monkeypatch.setattr(policy, "batch_scores", lambda *args: found.append(batch_scores(*args)) or found[-1])
    policy.score(rollouts)
    assert [scores.candidates for scores in found] == [None]
