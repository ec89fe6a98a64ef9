"""A loss that is differentiated twice (MAML, gradient penalties) is right: by torch's numeric check, in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lit_ssl.losses import clip_loss, cosine_contrast, info_nce, nt_xent, siglip_loss, sigreg
from lit_ssl.losses.rows import log_sum_products

A, B, QUEUE = (torch.randn(n, 3, dtype=torch.double, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 7))
B = B[:5]
SCALE = torch.tensor(2.0, dtype=torch.double)

LOSSES = {
    "nt_xent": lambda a, b: nt_xent(a, b, temperature=0.5),
    "nt_xent in chunks": lambda a, b: nt_xent(a, b, temperature=0.5, chunk_size=2),
    "nt_xent, hard": lambda a, b: nt_xent(a, b, temperature=0.5, beta=0.5),
    "nt_xent, debiased": lambda a, b: nt_xent(a, b, temperature=0.5, tau_plus=0.05, decoupled=True),
    "info_nce": lambda a, b: info_nce(a, b, temperature=0.5),
    "info_nce in chunks": lambda a, b: info_nce(a, b, temperature=0.5, chunk_size=2),
    "info_nce, queue": lambda a, b: info_nce(a, b, temperature=0.5, queue=QUEUE),
    "info_nce, kappa": lambda a, b: info_nce(a, b, temperature=0.5, kappa=1 / 64),
    "cosine_contrast": lambda a, b: cosine_contrast(a, b),
    "clip": lambda a, b: clip_loss(a, b, logit_scale=SCALE),
    "clip in chunks": lambda a, b: clip_loss(a, b, logit_scale=SCALE, chunk_size=2),
    "siglip": lambda a, b: siglip_loss(a, b, logit_scale=SCALE, logit_bias=-SCALE),
    "siglip in chunks": lambda a, b: siglip_loss(a, b, logit_scale=SCALE, logit_bias=-SCALE, chunk_size=2),
    "sigreg": lambda a, b: sigreg(torch.stack([a, b]), num_directions=4, knots=5),
    "log_sum_products": lambda a, b: log_sum_products(a, b, torch.arange(5)[:, None]).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives(name):
    inputs = (A.clone().requires_grad_(), B.clone().requires_grad_())
    assert gradcheck(LOSSES[name], inputs)
    assert gradgradcheck(LOSSES[name], inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_through_a_step_of_descent(name):
    def after_a_step(w, create_graph):
        w = w if w.requires_grad else w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(LOSSES[name](A @ w, B @ w), w, create_graph=create_graph)
        return LOSSES[name](A @ (w - 0.1 * slope), B @ (w - 0.1 * slope))

    w = torch.eye(3, dtype=torch.double)
    way = torch.arange(9, dtype=torch.double).view(3, 3).cos()
    numeric = (after_a_step(w + 1e-5 * way, False) - after_a_step(w - 1e-5 * way, False)) / 2e-5
    w.requires_grad_()
    after_a_step(w, True).backward()
    torch.testing.assert_close((w.grad * way).sum(), numeric.detach(), rtol=1e-6, atol=1e-9)
