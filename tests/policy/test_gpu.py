"""On a GPU a policy scores and learns as on a CPU, and samples what it scores. Skipped where there is no GPU."""

import pytest
import torch

from schoolhouse.algorithms.losses import negative_log_likelihood
from schoolhouse.algorithms.packing import pack, pack_for_scoring, token_mean
from schoolhouse.policy.policy import Policy
from schoolhouse.types import NAN, Key, Problem, Rollout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def cpu_policy(conversation, tiny_config):
    """The fixture `policy`, which is on the GPU, but on the CPU."""
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
    return Policy.create(config, conversation, precision="float32", device="cpu")


def make_rollouts(lengths=(5, 9, 3, 12)):
    """Rollouts with a prompt of one token."""
    problem = Problem("p", (), "")
    return [
        Rollout(problem, Key(0, "gpu", sample=i), tuple(range(3, 3 + n)), (False,) + (True,) * (n - 1), (0.0,) * n)
        for i, n in enumerate(lengths)
    ]


def test_the_default_device_is_the_gpu(policy, cpu_policy):
    assert policy.device.type == "cuda"
    assert cpu_policy.device.type == "cpu"


def test_scores_are_the_same(policy, cpu_policy):
    for scores, expected in zip(policy.score(make_rollouts()), cpu_policy.score(make_rollouts()), strict=True):
        assert scores.logprob == pytest.approx(expected.logprob, abs=1e-3)
        assert scores.entropy == pytest.approx(expected.entropy, abs=1e-3)


def test_the_loss_and_the_gradient_norm_are_the_same(policy, cpu_policy):
    rollouts = make_rollouts()
    metrics, expected = (
        each.update(pack(rollouts, token_mean(rollouts)), negative_log_likelihood(), 1e-3)
        for each in (policy, cpu_policy)
    )
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sampled_log_probabilities_are_those_that_it_scores(conversation, tiny_config, monkeypatch, graphs, precision):
    """Sampling reads prompts once and decodes with a cache; scoring reads whole sequences. Both agree."""
    monkeypatch.setenv("SCHOOLHOUSE_GRAPHS", graphs)
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
    policy = Policy.create(config, conversation, precision=precision)
    problem = Problem("p", (), "")
    prompts = [(4, 9, 13)] * 20 + [(5, 7, 7, 8, 30)] * 30 + [(60, 3)]
    prefixes = [
        Rollout(problem, Key(0, "gpu", sample=i), ids, (False,) * len(ids), (NAN,) * len(ids))
        for i, ids in enumerate(prompts)
    ]
    rollouts = policy.extend(prefixes, [4 + i % 13 for i in range(len(prefixes))], stop_ids=())
    for rollout, scores in zip(rollouts, policy.score(rollouts), strict=True):
        start = rollout.turns[0]
        tolerance = 1e-3 if precision == "float32" else 0.1
        assert rollout.logprob[start:] == pytest.approx(scores.logprob[start:].tolist(), abs=tolerance)


def test_a_saved_policy_loads_with_the_same_scores(policy, tmp_path):
    policy.save(tmp_path)
    loaded = Policy.load(tmp_path, "float32")
    (_, batch), *_ = pack_for_scoring(make_rollouts())
    with torch.no_grad():
        assert torch.equal(policy.batch_scores(batch, 1.0).logprob, loaded.batch_scores(batch, 1.0).logprob)
