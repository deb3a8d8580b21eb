"""The kernels compute for each row what torch computes, gradients too, and no row depends on another."""

import shutil

import numpy as np
import pytest
import torch

from schoolhouse.model import fused_ops
from schoolhouse.model.fused_ops import apply_rotary, logprobs_and_entropy, rms_norm, swiglu
from schoolhouse.policy.sampling import sample

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
DTYPES = [torch.float32, torch.bfloat16]


def disable_kernels(monkeypatch):
    monkeypatch.setattr(fused_ops, "_has_kernel", lambda *_: False)


def assert_equals_torch(monkeypatch, function, inputs, dtype):
    """Compare the result and the gradients of a function of tensors with those of torch in float32."""
    grad_out = torch.randn_like(function(*inputs).float())
    out = function(*inputs)
    results = [out, *torch.autograd.grad(out, inputs, grad_out.to(out.dtype))]
    disable_kernels(monkeypatch)
    float_inputs = [x.detach().float().requires_grad_() for x in inputs]
    out = function(*float_inputs)
    expected = [out, *torch.autograd.grad(out, float_inputs, grad_out)]
    relative, absolute = (1e-5, 1e-5) if dtype == torch.float32 else (1e-2, 3e-2)
    for result, expected_result in zip(results, expected, strict=True):
        torch.testing.assert_close(result.float(), expected_result, rtol=relative, atol=absolute)


def rotation(angle):
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5), (200, 48), (3, 1000)])
def test_rms_norm_equals_that_of_torch(monkeypatch, shape, dtype):
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(shape)).requires_grad_(), torch.rand(shape[1], requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert rms_norm(x, weight, 1e-6).dtype == dtype
        assert_equals_torch(monkeypatch, lambda *inputs: rms_norm(*inputs, 1e-6), [x, weight], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_rotary_embedding_equals_that_of_torch(monkeypatch, head_dim, with_norm, dtype):
    torch.manual_seed(0)
    x = torch.randn(150, 3, head_dim).to(dtype).requires_grad_()
    angle = torch.rand(150, 1, head_dim // 2) * 6
    weight = [torch.rand(head_dim, requires_grad=True)] if with_norm else []

    def rotate(x, *weight):
        return apply_rotary(x, rotation(angle), weight[0] if weight else None, 1e-6)

    assert_equals_torch(monkeypatch, rotate, [x, *weight], dtype)


def test_rotated_heads_can_be_rounded_to_the_number_type_of_the_input():
    torch.manual_seed(0)
    x, angle = torch.randn(40, 2, 32).bfloat16(), torch.rand(40, 1, 16)
    unrounded, rounded = (apply_rotary(x, rotation(angle), None, 1e-6, round_output=r) for r in (False, True))
    assert torch.equal(rounded, unrounded.bfloat16().float())
    assert not torch.equal(rounded, unrounded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (33, 50), (16, 64)])
def test_swiglu_equals_that_of_torch(monkeypatch, shape, dtype):
    torch.manual_seed(0)
    inputs = [(4 * torch.randn(shape)).to(dtype).requires_grad_() for _ in range(2)]
    assert_equals_torch(monkeypatch, swiglu, inputs, dtype)


def test_swiglu_is_zero_or_linear_far_from_zero():
    gate = torch.tensor([[-1e4, -200.0, 200.0, 1e4]])
    torch.testing.assert_close(swiglu(gate, torch.ones(1, 4)), torch.tensor([[0.0, 0.0, 200.0, 1e4]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_row_depends_on_another(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(300, 50), torch.rand(50)
    heads, angle = torch.randn(300, 2, 32).to(dtype), torch.rand(300, 1, 16)
    logits, uniform = torch.randn(300, 77).to(dtype), torch.rand(300, dtype=torch.float64)
    for rows in (slice(0, 1), slice(7, 40), slice(299, 300)):
        assert torch.equal(rms_norm(x, weight, 1e-6)[rows], rms_norm(x[rows], weight, 1e-6))
        whole, part = (apply_rotary(heads[at], rotation(angle[at]), None, 1e-6) for at in (slice(300), rows))
        assert torch.equal(whole[rows], part)
        for whole, part in zip(sample(logits, uniform, 1.0), sample(logits[rows], uniform[rows], 1.0), strict=True):
            assert torch.equal(whole[rows], part)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocab_size", [3, 64, 1003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_uniform_numbers_sample_the_same_tokens(monkeypatch, dtype, vocab_size, temperature):
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(2 * generator.standard_normal((2000, vocab_size))).to(dtype)
    uniform = torch.from_numpy(generator.random(2000))
    token, logprob = sample(logits, uniform, temperature)
    learner_logprob, _ = logprobs_and_entropy(logits, token, temperature)
    assert torch.equal(logprob, learner_logprob)  # to the bit
    disable_kernels(monkeypatch)
    expected, expected_logprob = sample(logits, uniform, temperature)
    same = token == expected
    assert same.double().mean() > 0.999  # sums are rounded differently: near a border the next token may be sampled
    torch.testing.assert_close(logprob[same], expected_logprob[same], rtol=1e-5, atol=1e-5)


def test_without_kernels_the_ends_of_the_unit_interval_sample_possible_tokens(monkeypatch):
    disable_kernels(monkeypatch)
    uniform = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    token, _ = sample(torch.tensor([[-1e9, 1.0, 2.0, -1e9]]).expand(2, -1), uniform, 1.0)
    assert token.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size, temperature", [(5, 1.0), (64, 0.7), (1003, 1.5)])
def test_log_probabilities_and_entropy_equal_those_of_torch(dtype, vocab_size, temperature):
    torch.manual_seed(0)
    logits = (4 * torch.randn(9, vocab_size)).to(dtype).requires_grad_()
    token, grad_logprob = torch.randint(0, vocab_size, (9,)), torch.randn(9)
    logprob, entropy = logprobs_and_entropy(logits, token, temperature)
    (gradient,) = torch.autograd.grad(logprob, logits, grad_logprob)
    all_logprobs = (logits.float() / temperature).log_softmax(-1)
    expected = all_logprobs.gather(1, token[:, None])[:, 0]
    (expected_gradient,) = torch.autograd.grad(expected, logits, grad_logprob)
    assert torch.allclose(logprob, expected, atol=2e-6)
    assert torch.allclose(entropy, -(all_logprobs.exp() * all_logprobs).sum(-1), atol=5e-6)
    assert not entropy.requires_grad
    assert gradient.dtype == dtype
    assert torch.allclose(gradient, expected_gradient, atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
