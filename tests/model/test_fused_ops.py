"""What the kernels make of each row is what torch makes of it, gradients too, and no row depends on another."""

import shutil

import numpy as np
import pytest
import torch

from schoolhouse.model import fused_ops
from schoolhouse.model.fused_ops import logprobs_and_entropy, rms_norm, apply_rotary, swiglu
from schoolhouse.policy.sampling import sample

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
KINDS = [torch.float32, torch.bfloat16]


@pytest.fixture
def torch_alone(monkeypatch):
    monkeypatch.setattr(fused_ops, "_native", lambda *about: False)


def compare(monkeypatch, function, inputs, kind):
    """Result and gradients of a function of tensors in this number type, beside torch's in float32."""
    towards = torch.randn_like(function(*inputs).float())
    ours = function(*inputs)
    ours = [ours, *torch.autograd.grad(ours, inputs, towards.to(ours.dtype))]
    monkeypatch.setattr(fused_ops, "_native", lambda *about: False)
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    theirs = function(*inputs)
    theirs = [theirs, *torch.autograd.grad(theirs, inputs, towards)]
    relative, absolute = (1e-5, 1e-5) if kind == torch.float32 else (1e-2, 3e-2)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=relative, atol=absolute)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 5), (200, 48), (3, 1000)])
def test_norms_are_those_of_torch(monkeypatch, shape, kind):
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(shape)).requires_grad_(), torch.rand(shape[1], requires_grad=True)
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        assert rms_norm(x, weight, 1e-6).dtype == kind
        compare(monkeypatch, lambda *given: rms_norm(*given, 1e-6), [x, weight], kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("width", [32, 64])
def test_heads_are_normed_and_rotated_as_torch_does_it(monkeypatch, width, weighed, kind):
    torch.manual_seed(0)
    x = torch.randn(150, 3, width).to(kind).requires_grad_()
    angle = torch.rand(150, 1, width // 2) * 6
    weight = [torch.rand(width, requires_grad=True)] if weighed else []

    def turned(x, *weight):
        return apply_rotary(x, (angle.cos(), angle.sin()), weight[0] if weight else None, 1e-6)

    compare(monkeypatch, turned, [x, *weight], kind)


def test_heads_are_rounded_to_what_products_make(monkeypatch):
    torch.manual_seed(0)
    x, angle = torch.randn(40, 2, 32).bfloat16(), torch.rand(40, 1, 16)
    exact, rounded = (apply_rotary(x, (angle.cos(), angle.sin()), None, 1e-6, rounded=r) for r in (False, True))
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 7), (33, 50), (16, 64)])
def test_gates_are_those_of_torch(monkeypatch, shape, kind):
    torch.manual_seed(0)
    compare(monkeypatch, swiglu, [(4 * torch.randn(shape)).to(kind).requires_grad_() for _ in range(2)], kind)


def test_a_gate_far_from_zero_is_open_or_shut():
    far = torch.tensor([[-1e4, -200.0, 200.0, 1e4]])
    torch.testing.assert_close(swiglu(far, torch.ones(1, 4)), torch.tensor([[0.0, 0.0, 200.0, 1e4]]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_depends_on_another(kind):
    torch.manual_seed(0)
    x, weight = torch.randn(300, 50), torch.rand(50)
    heads, angle = torch.randn(300, 2, 32).to(kind), torch.rand(300, 1, 16)
    logits, point = torch.randn(300, 77).to(kind), torch.rand(300, dtype=torch.float64)
    for some in (slice(0, 1), slice(7, 40), slice(299, 300)):
        assert torch.equal(rms_norm(x, weight, 1e-6)[some], rms_norm(x[some], weight, 1e-6))
        whole, part = (apply_rotary(heads[at], (angle[at].cos(), angle[at].sin()), None, 1e-6) for at in (slice(300), some))
        assert torch.equal(whole[some], part)
        for whole, part in zip(sample(logits, point, 1.0), sample(logits[some], point[some], 1.0), strict=True):
            assert torch.equal(whole[some], part)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("size", [3, 64, 1003])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_points_draw_the_same_tokens(monkeypatch, kind, size, temperature):
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(2 * generator.standard_normal((2000, size))).to(kind)
    point = torch.from_numpy(generator.random(2000))
    token, logprob = sample(logits, point, temperature)
    assert torch.equal(
        logprob, logprobs_and_entropy(logits, token, temperature)[0]
    )  # as the learner finds it, to the bit
    monkeypatch.setattr(fused_ops, "_native", lambda *about: False)
    expected, expected_logprob = sample(logits, point, temperature)
    same = token == expected
    assert same.double().mean() > 0.999  # sums are rounded otherwise: at a border a neighbour may be drawn
    torch.testing.assert_close(logprob[same], expected_logprob[same], rtol=1e-5, atol=1e-5)


def test_torch_alone_draws_possible_tokens_at_the_ends_of_the_unit_interval(torch_alone):
    point = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    token, _ = sample(torch.tensor([[-1e9, 1.0, 2.0, -1e9]]).expand(2, -1), point, 1.0)
    assert token.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size, temperature", [(5, 1.0), (64, 0.7), (1003, 1.5)])
def test_log_probabilities_are_those_of_torch(dtype, size, temperature):
    torch.manual_seed(0)
    logits = (4 * torch.randn(9, size)).to(dtype).requires_grad_()
    token, towards = torch.randint(0, size, (9,)), torch.randn(9)
    logprob, entropy = logprobs_and_entropy(logits, token, temperature)
    (ours,) = torch.autograd.grad(logprob, logits, towards)
    whole = (logits.float() / temperature).log_softmax(-1)
    expected = whole.gather(1, token[:, None])[:, 0]
    (theirs,) = torch.autograd.grad(expected, logits, towards)
    assert torch.allclose(logprob, expected, atol=2e-6)
    assert torch.allclose(entropy, -(whole.exp() * whole).sum(-1), atol=5e-6)
    assert not entropy.requires_grad
    assert ours.dtype == dtype
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
