import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

from lit_ssl.losses import (
    bernoulli_log_likelihood,
    elbo,
    gaussian_kl,
    gaussian_log_likelihood,
    iwae_bound,
    log_importance_weight,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def posterior(rows=6, latents=3, seed=0):
    """Means and log-variances of which one latent is nearly the prior."""
    scale = torch.linspace(0.02, 1.5, latents, dtype=torch.float64)
    return draw(rows, latents, seed=seed) * scale, draw(rows, latents, seed=seed + 1) * scale


def reference_elbo(log_likelihood, mean, log_variance, beta, free_bits):
    """Term by term: a loop over images and latents, each KL from its integral's closed form."""
    rows, latents = mean.shape
    reconstruction = -sum(log_likelihood[i] for i in range(rows)) / rows
    by_latent = []
    for j in range(latents):
        terms = []
        for i in range(rows):
            variance = log_variance[i, j].exp()
            terms.append(-0.5 * (1 + log_variance[i, j] - mean[i, j] ** 2 - variance))
        by_latent.append(sum(terms) / rows)
    kl = sum(by_latent)
    cost = sum(torch.maximum(k, torch.tensor(free_bits, dtype=k.dtype)) for k in by_latent)
    return reconstruction + beta * cost, -reconstruction - kl, reconstruction, kl


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 5), st.sampled_from([0, 0.5, 1, 4]), st.sampled_from([0, 0.1, 0.5]))
def test_elbo_is_the_formula_term_by_term(rows, latents, beta, free_bits):
    inputs = [draw(rows, seed=9) * 10 - 90, *posterior(rows, latents, seed=rows)]
    ours, theirs = [], []
    for found, function in ((ours, elbo), (theirs, reference_elbo)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        values = function(*leaves, beta=beta, free_bits=free_bits)
        found += [*values, *torch.autograd.grad(values[0], leaves, retain_graph=True)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_pixels_and_latents_are_summed_and_images_averaged():
    """A mean over pixels or latents would leave the first two alone; a sum over images would change the third."""
    logits, target = draw(4, 1, 6, 6), (draw(4, 1, 6, 6, seed=1) > 0).double()
    mean, log_variance = posterior(4, 3)

    def terms(tall=1, wide=1, long=1):
        likelihood = bernoulli_log_likelihood(logits.repeat(1, 1, tall, 1), target.repeat(1, 1, tall, 1))
        gaussian = gaussian_log_likelihood(logits.repeat(1, 1, tall, 1), target.repeat(1, 1, tall, 1), -1.0)
        code = [x.repeat(long, wide) for x in (mean, log_variance)]
        return torch.stack([elbo(x.repeat(long), *code).reconstruction for x in (likelihood, gaussian)]), elbo(
            likelihood.repeat(long), *code
        ).kl

    reconstruction, kl = terms()
    torch.testing.assert_close(terms(tall=2)[0], 2 * reconstruction)
    torch.testing.assert_close(terms(wide=2)[1], 2 * kl)
    torch.testing.assert_close(terms(long=2), (reconstruction, kl))
    flat = bernoulli_log_likelihood(torch.zeros(2, 3, 5, 7), torch.ones(2, 3, 5, 7))
    torch.testing.assert_close(flat, torch.full((2,), -3 * 5 * 7 * math.log(2)))  # a coin a pixel


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 50), st.sampled_from([-2.0, 0.0, 0.7]))
def test_likelihoods_are_those_of_independent_pixels(channels, side, seed, spread):
    output, pixels = draw(3, 2, channels, side, 4, seed=seed), draw(2, channels, side, 4, seed=seed + 1).sigmoid()
    binary = (pixels > 0.5).double()
    expected = Bernoulli(logits=output).log_prob(binary.expand_as(output)).sum((2, 3, 4))
    torch.testing.assert_close(bernoulli_log_likelihood(output, binary), expected)
    expected = Normal(output, math.exp(spread / 2)).log_prob(pixels).sum((2, 3, 4))
    torch.testing.assert_close(gaussian_log_likelihood(output, pixels, spread), expected)
    torch.testing.assert_close(gaussian_log_likelihood(output, pixels, torch.tensor(spread)), expected)


def test_soft_pixels_give_the_expectation_over_binary_draws():
    logits, pixels = draw(1, 1, 4, 4), draw(1, 1, 4, 4, seed=1).sigmoid()
    uniform = torch.rand(40_000, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = bernoulli_log_likelihood(logits.expand_as(uniform), (uniform < pixels).double())
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - bernoulli_log_likelihood(logits, pixels)[0]) < 4 * error


def test_analytic_kl_is_what_monte_carlo_finds():
    mean, log_variance = posterior(2, 4)
    q = Normal(mean, (log_variance / 2).exp())
    exact = gaussian_kl(mean, log_variance)
    torch.testing.assert_close(exact, kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)))
    z = mean + (log_variance / 2).exp() * draw(200_000, 2, 4, seed=7)
    samples = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = samples.std(0) / len(z) ** 0.5
    assert ((samples.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.02).all()  # it would see a wrong factor


def test_the_prior_costs_nothing():
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).abs().max() == 0


# A model whose evidence is known: z ~ N(0, 1) and x = w z + noise, all Gaussian.


class LinearModel:
    def __init__(self, pixels=5, noise=0.7):
        self.weight, self.noise = draw(pixels, seed=3), noise
        self.x = draw(4, pixels, seed=4) * 1.5

    def log_evidence(self):
        covariance = torch.outer(self.weight, self.weight) + self.noise**2 * torch.eye(len(self.weight)).double()
        mean = torch.zeros(len(self.weight), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(self.x)

    def exact_posterior(self):
        precision = 1 + self.weight @ self.weight / self.noise**2
        mean = (self.x @ self.weight) / self.noise**2 / precision
        return mean[:, None], -precision.log().expand(4, 1)

    def log_weight(self, mean, log_variance, samples, seed=5):
        z = mean + (log_variance / 2).exp() * draw(samples, 4, 1, seed=seed)
        output = (z * self.weight)[..., None, None, :]  # (K, B, 1, 1, pixels)
        likelihood = gaussian_log_likelihood(output, self.x[:, None, None], 2 * math.log(self.noise))
        return log_importance_weight(likelihood, z, mean, log_variance), likelihood


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    model = LinearModel()
    weight, _ = model.log_weight(*model.exact_posterior(), samples=7)
    torch.testing.assert_close(weight, model.log_evidence().expand(7, 4))
    torch.testing.assert_close(iwae_bound(weight), model.log_evidence().mean())


def test_the_importance_weighted_bound_rises_with_its_samples_from_elbo_to_evidence():
    model = LinearModel()
    mean, log_variance = model.exact_posterior()
    mean, log_variance = mean + 0.5, log_variance + 1.0  # an encoder that is somewhat wrong
    weight, likelihood = model.log_weight(mean, log_variance, samples=50_000)
    bounds = [iwae_bound(weight.unflatten(0, (-1, k)).transpose(0, 1).flatten(1)) for k in (1, 2, 5, 20, 100)]
    evidence = model.log_evidence().mean()
    assert all(low < high for low, high in itertools.pairwise(bounds))
    assert bounds[0] + 0.1 < bounds[2]
    assert bounds[-1] < evidence
    assert abs(bounds[-1] - evidence) < 0.02 < evidence - bounds[0]
    expected = elbo(likelihood.mean(0), mean, log_variance).elbo
    assert abs(bounds[0] - expected) < 0.05


def test_free_bits_stop_the_pull_on_a_latent_that_costs_less():
    mean, log_variance = (x.requires_grad_() for x in posterior(64, 3))
    kl = gaussian_kl(mean, log_variance).mean(0)
    assert kl[0] < 0.2 < kl[2]
    free = elbo(torch.zeros(64), mean, log_variance, free_bits=0.2)
    torch.testing.assert_close(free.loss, kl.clamp(min=0.2).sum())
    torch.testing.assert_close(free.elbo, -kl.sum())  # the bound itself has no free bits
    (pull,) = torch.autograd.grad(free.loss, mean)
    assert (pull[:, 0] == 0).all()
    assert (pull[:, 2] != 0).all()


def test_free_bits_are_of_the_mean_over_images():
    """One image far from the prior and many at it: the mean is below the free bits, the one image's KL far above."""
    mean = torch.zeros(100, 1, dtype=torch.float64)
    mean[0] = 3.0
    mean.requires_grad_()
    loss = elbo(torch.zeros(100), mean, torch.zeros(100, 1).double(), free_bits=0.1).loss
    assert loss == 0.1
    assert (torch.autograd.grad(loss, mean)[0] == 0).all()


def test_half_precision_is_computed_in_float32():
    mean, log_variance = (x.bfloat16() for x in posterior(4, 8))
    logits, target = draw(4, 1, 16, 16).bfloat16(), (draw(4, 1, 16, 16, seed=1) > 0).bfloat16()

    def terms(dtype):
        likelihood = bernoulli_log_likelihood(logits.to(dtype), target.to(dtype))
        gaussian = gaussian_log_likelihood(logits.to(dtype), target.to(dtype), -1.0)
        return torch.stack([*elbo(likelihood, mean.to(dtype), log_variance.to(dtype)), gaussian.mean()])

    half, exact = terms(torch.bfloat16), terms(torch.float64)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(terms(torch.float32).double(), exact, rtol=1e-5, atol=1e-5)


def test_far_weights_do_not_overflow():
    weight = torch.tensor([[-1e4, 3e3], [-2e4, 2e3]])
    torch.testing.assert_close(iwae_bound(weight), torch.tensor((-1e4 + 3e3) / 2 - math.log(2)))


@pytest.mark.parametrize(("option", "value"), [("beta", -1.0), ("beta", math.inf), ("free_bits", -0.1)])
def test_a_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=rf"{option} must be .*got {value}"):
        elbo(torch.zeros(2), *posterior(2), **{option: value})


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"mean and log_variance must both be \(B, Z\), got \(2, 3\) and \(3, 3\)"):
        gaussian_kl(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"log_likelihood must be \(B,\), B=6 as of mean, got \(6, 784\)"):
        elbo(torch.zeros(6, 784), *posterior())
    with pytest.raises(ValueError, match=r"log_weight must be \(K, B\) with K of at least 1, got \(0, 4\)"):
        iwae_bound(torch.zeros(0, 4))
