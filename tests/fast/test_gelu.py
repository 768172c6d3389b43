"""The GELU of compiled kernels equals torch's."""

import torch
from torch.nn import functional as F

from music_ssl_fairseq.fast.gelu import compiled_gelu


def test_it_equals_torch_s_to_the_rounding_of_its_type():
    x = torch.linspace(-9, 9, 20001).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, plain = compiled_gelu(x), F.gelu(exact)
    # Half a step of bfloat16, and the approximation's own error.
    assert ((y.double() - plain).abs() <= plain.abs() * 2**-8 + 1e-6).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    (plain_grad,) = torch.autograd.grad(plain.sum(), exact)
    assert ((grad.double() - plain_grad).abs() <= plain_grad.abs() * 2**-8 + 1e-6).all()


def test_fp32_is_torch_s_own():
    x = torch.randn(100)
    assert torch.equal(compiled_gelu(x), F.gelu(x))


def test_a_compiler_takes_it():
    x = torch.randn(3, 50).bfloat16().requires_grad_()
    y = torch.compile(compiled_gelu, backend="aot_eager")(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, compiled_gelu(x))
    torch.testing.assert_close(grad, torch.autograd.grad(compiled_gelu(x).sum(), x)[0])
