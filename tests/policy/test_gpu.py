"""On a GPU a policy scores and learns as on a processor, and says what it scores. Skipped where there is none."""

import pytest
import torch

from schoolhouse.algorithms.losses import negative_log_likelihood
from schoolhouse.algorithms.packing import pack, pack_for_scoring, token_mean
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Problem, Rollout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def both(policy, conversation, tiny_shape, monkeypatch):
    """The policy on the GPU, and the same one on the processor."""
    monkeypatch.setattr("schoolhouse.policy.policy.pick_device", lambda: torch.device("cpu"))
    here = Policy.create(tiny_shape(vocab_size=conversation.tokenizer.size), conversation, precision="float32")
    return policy, here


def rows(lengths=(5, 9, 3, 12)):
    """Rollouts whose second half was written."""
    problem = Problem("p", (), "")
    return [
        Rollout(problem, Key(0, "gpu", sample=i), tuple(range(3, 3 + n)), (False,) + (True,) * (n - 1), (0.0,) * n)
        for i, n in enumerate(lengths)
    ]


def test_it_is_there(both):
    assert both[0].device.type == "cuda"
    assert both[1].device.type == "cpu"


def test_it_scores_the_same(both):
    there, here = (policy.score(rows()) for policy in both)
    for one, other in zip(there, here, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-3)


def test_its_loss_and_the_size_of_its_gradient_are_the_same(both):
    there, here = (policy.update(pack(rows(), token_mean(rows())), negative_log_likelihood(), 1e-3) for policy in both)
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-3)
    assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_it_says_is_what_it_scores(conversation, tiny_shape, monkeypatch, graphs, precision):
    """Prompts are read once and answers grow in a cache; learning reads whole rows. The two agree."""
    monkeypatch.setenv("SCHOOLHOUSE_GRAPHS", graphs)
    policy = Policy.create(tiny_shape(vocab_size=conversation.tokenizer.size), conversation, precision=precision)
    problem = Problem("p", (), "")
    prompts = [(4, 9, 13)] * 20 + [(5, 7, 7, 8, 30)] * 30 + [(60, 3)]
    asked = [
        Rollout(problem, Key(0, "gpu", sample=i), ids, (False,) * len(ids), (float("nan"),) * len(ids))
        for i, ids in enumerate(prompts)
    ]
    said = policy.extend(asked, [4 + i % 13 for i in range(len(asked))], stop_ids=())
    for rollout, scores in zip(said, policy.score(said), strict=True):
        written = [i for i, mine in enumerate(rollout.loss_mask) if mine]
        sampled = [rollout.logprob[i] for i in written]
        assert sampled == pytest.approx(list(scores.logprob[written]), abs=1e-3 if precision == "float32" else 0.1)


def test_a_model_comes_back_from_disk(policy, tmp_path):
    policy.save(tmp_path)
    again = Policy.load(tmp_path, "float32")
    (_, batch), *_ = pack_for_scoring(rows())
    with torch.no_grad():
        assert torch.equal(policy._batch_scores(batch, 1.0).logprob, again._batch_scores(batch, 1.0).logprob)
