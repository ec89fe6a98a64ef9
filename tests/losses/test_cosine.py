import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.losses import cosine_contrast, info_nce


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, requires_grad=True)


def cosine(a, b):
    return a @ b / (a.norm() * b.norm())


def reference(z1, z2):
    n = len(z1)
    pull = [1 - cosine(z1[i], z2[i]) for i in range(n)]
    push = [cosine(z1[i], z2[j]).clamp(min=0) for i in range(n) for j in range(n) if i != j]
    return sum(pull) / len(pull) + sum(push) / len(push)


def spherical(cos, kappa):
    return (1 + cos) / 2 / (1 + kappa * (1 - cos))


def reference_info_nce(query, key, temperature, kappa):
    terms = []
    for i in range(len(query)):
        similarity = torch.stack([spherical(cosine(query[i], k), kappa) for k in key]) / temperature
        terms.append(similarity.exp().sum().log() - similarity[i])
    return torch.stack(terms).mean()


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 7), st.integers(1, 5), st.sampled_from([None, 1, 3, 100]), st.integers(0, 100))
def test_it_is_the_formula_and_symmetric(n, dim, chunk_size, seed):
    z1, z2 = rows(n, dim, seed=seed), rows(n, dim, seed=seed + 1000)
    ours, theirs = cosine_contrast(z1, z2, chunk_size=chunk_size), reference(z1, z2)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, cosine_contrast(z2, z1), rtol=1e-10, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(value, (z1, z2)) for value in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_its_ends():
    eye = torch.eye(5)
    assert cosine_contrast(eye, 3 * eye).item() == pytest.approx(0, abs=1e-6)
    assert cosine_contrast(eye, -eye).item() == pytest.approx(2, abs=1e-6)
    alike = torch.ones(5, 3)
    assert cosine_contrast(alike, alike).item() == pytest.approx(1, abs=1e-6)
    one = rows(1, 3)
    assert cosine_contrast(one, one).item() == pytest.approx(0, abs=1e-12)  # nothing to push from
    nothing = torch.zeros(0, 3, requires_grad=True)
    assert cosine_contrast(nothing, nothing).item() == 0


def test_codes_that_tell_nothing_cost_at_least_1():
    for seed in range(5):
        z1, z2 = rows(400, 6, seed=seed), rows(400, 6, seed=seed + 100)
        assert cosine_contrast(z1, z2).item() > 1.0


def test_half_precision_is_computed_in_float32():
    z1, z2 = rows(16, 8, dtype=torch.float32), rows(16, 8, seed=1, dtype=torch.float32)
    half = cosine_contrast(z1.bfloat16(), z2.bfloat16())
    assert half.dtype == torch.float32
    exact = cosine_contrast(z1.bfloat16().double(), z2.bfloat16().double())
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    plain = cosine_contrast(z1, z2).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cosine_contrast(z1, z2).item() == pytest.approx(plain, rel=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"z1 and z2 must both be \(B, D\).*\(2, 3\) and \(3, 3\)"):
        cosine_contrast(rows(2, 3), rows(3, 3))
    with pytest.raises(ValueError, match=r"chunk_size must .*got 0"):
        cosine_contrast(rows(2, 3), rows(2, 3), chunk_size=0)
    with pytest.raises(ValueError, match=r"kappa must .*got -0.5"):
        info_nce(rows(2, 3), rows(2, 3), temperature=0.1, kappa=-0.5)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 7), st.sampled_from([0.0, 1 / 64, 16.0]), st.sampled_from([0.07, 1.0]), st.integers(0, 100))
def test_info_nce_takes_the_spherical_similarity(n, kappa, temperature, seed):
    query, key = rows(n, 5, seed=seed), rows(n, 5, seed=seed + 1000)
    ours = info_nce(query, key, temperature=temperature, kappa=kappa)
    theirs = reference_info_nce(query, key, temperature, kappa)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(value, (query, key)) for value in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_without_kappa_the_spherical_similarity_is_the_cosine_at_twice_the_temperature():
    query, key = rows(6, 5), rows(6, 5, seed=1)
    for options in ({}, {"beta": 1.0}, {"tau_plus": 0.1}, {"decoupled": True}, {"beta": 0.5, "tau_plus": 0.9}):
        # The offset (1 + cos) / 2 - cos / 2 cancels in every ratio, the floor of debiasing among them.
        spherical_loss = info_nce(query, key, temperature=0.1, kappa=0.0, **options)
        torch.testing.assert_close(spherical_loss, info_nce(query, key, temperature=0.2, **options))
