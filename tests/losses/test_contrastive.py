import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.losses import info_nce, nt_xent


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def reference_row(positive, negatives, t, beta, tau_plus, decoupled):
    """METHODS' formula for one row, term by term, without a logarithm's shelter."""
    n = len(negatives)
    s = torch.stack(negatives) if isinstance(negatives, list) else negatives
    weight = torch.exp(beta * s / t) / torch.exp(beta * s / t).mean()
    ng = ((weight * torch.exp(s / t)).sum() - tau_plus * n * torch.exp(positive / t)) / (1 - tau_plus)
    ng = ng.clamp(min=n * math.exp(-1 / t))
    denominator = ng if decoupled else torch.exp(positive / t) + ng
    return -torch.log(torch.exp(positive / t) / denominator)


def reference_nt_xent(z1, z2, *, temperature, beta=0.0, tau_plus=0.0, decoupled=False):
    z, n = torch.cat([unit(z1), unit(z2)]), len(z1)
    rows = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        negatives = [z[i] @ z[j] for j in range(2 * n) if j not in (i, partner)]
        rows.append(reference_row(z[i] @ z[partner], negatives, temperature, beta, tau_plus, decoupled))
    return torch.stack(rows).mean()


def reference_info_nce(query, key, *, temperature, queue=None, beta=0.0, tau_plus=0.0, decoupled=False):
    q, k = unit(query), unit(key)
    rows = []
    for i in range(len(q)):
        pool = unit(queue) if queue is not None else torch.cat([k[:i], k[i + 1 :]])
        rows.append(reference_row(q[i] @ k[i], pool @ q[i], temperature, beta, tau_plus, decoupled))
    return torch.stack(rows).mean()


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, requires_grad=True)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.07, 0.2, 1.0]),
        "beta": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "tau_plus": st.sampled_from([0.0, 0.1, 0.5]),
        "decoupled": st.booleans(),
    }
)


@settings(deadline=None, max_examples=30)
@given(options, st.integers(2, 7), st.integers(0, 100))
def test_nt_xent_is_the_formula(options, n, seed):
    z1, z2 = rows(n, 5, seed=seed), rows(n, 5, seed=seed + 1000)
    ours, theirs = nt_xent(z1, z2, **options), reference_nt_xent(z1, z2, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(ours, z1, z2), gradients(theirs, z1, z2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(options, st.integers(2, 7), st.booleans(), st.integers(0, 100))
def test_info_nce_is_the_formula(options, n, queued, seed):
    query, key = rows(n, 5, seed=seed), rows(n, 5, seed=seed + 1000)
    queue = rows(9, 5, seed=seed + 2000).detach() if queued else None
    ours, theirs = info_nce(query, key, queue=queue, **options), reference_info_nce(query, key, queue=queue, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(ours, query, key), gradients(theirs, query, key), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_without_options_it_is_plain_cross_entropy_over_all_others():
    z1, z2 = rows(6, 8), rows(6, 8, seed=1)
    z = unit(torch.cat([z1, z2]))
    logits = (z @ z.T / 0.3).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    torch.testing.assert_close(nt_xent(z1, z2, temperature=0.3, beta=0.0, tau_plus=0.0), expected)


def test_small_beta_and_tau_plus_approach_the_plain_loss():
    z1, z2 = rows(6, 8), rows(6, 8, seed=1)
    plain = nt_xent(z1, z2, temperature=0.2)
    near = nt_xent(z1, z2, temperature=0.2, beta=1e-9, tau_plus=1e-9)
    torch.testing.assert_close(near, plain, rtol=1e-7, atol=0)
    far = nt_xent(z1, z2, temperature=0.2, beta=1.0, tau_plus=0.1)
    assert abs(far - plain) > 1e-2


def test_debiasing_stops_at_its_floor():
    """Positives far more alike than negatives would make the debiased sum negative."""
    z = torch.eye(4, dtype=torch.float64)
    z1, z2 = z.clone().requires_grad_(), (z + 1e-6).requires_grad_()
    loss = nt_xent(z1, z2, temperature=0.1, tau_plus=0.5)
    expected = math.log1p(6 * math.exp(-1 / 0.1) / math.exp(1 / 0.1))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert all(g.isfinite().all() for g in gradients(loss, z1, z2))


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
@pytest.mark.parametrize("queued", [None, True, False])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_chunks_change_nothing(chunk_size, queued, beta):
    a, b = rows(8, 5), rows(8, 5, seed=1)
    if queued is None:
        loss, kwargs = nt_xent, {}
    else:
        loss, kwargs = info_nce, {"queue": rows(11, 5, seed=2).detach() if queued else None}
    kwargs |= {"temperature": 0.2, "beta": beta, "tau_plus": 0.1}
    dense, chunked = loss(a, b, **kwargs), loss(a, b, chunk_size=chunk_size, **kwargs)
    torch.testing.assert_close(dense, chunked, rtol=1e-12, atol=0)
    for x, y in zip(gradients(dense, a, b), gradients(chunked, a, b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-14)
    with torch.no_grad():
        evaluated = loss(a, b, chunk_size=chunk_size, **kwargs)
    assert not evaluated.requires_grad
    torch.testing.assert_close(evaluated, dense.detach(), rtol=1e-12, atol=0)


def test_half_precision_inputs_are_computed_in_float32():
    z1, z2 = rows(32, 16, dtype=torch.float32), rows(32, 16, seed=1, dtype=torch.float32)
    half = nt_xent(z1.bfloat16(), z2.bfloat16(), temperature=0.1)
    exact = nt_xent(z1.bfloat16().double(), z2.bfloat16().double(), temperature=0.1)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nt_xent(z1, z2, temperature=0.1)
    assert mixed.item() == pytest.approx(nt_xent(z1, z2, temperature=0.1).item(), rel=1e-6)


def test_identical_rows_and_single_pairs_stay_finite():
    z = torch.zeros(4, 3, requires_grad=True)
    assert nt_xent(z, z, temperature=0.05).isfinite()
    one = rows(1, 3)
    assert nt_xent(one, one, temperature=0.2).item() == 0  # no negatives, nothing to learn


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", 0.0), ("temperature", math.inf), ("beta", -1.0), ("tau_plus", 1.0), ("chunk_size", 0)],
)
def test_a_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=rf"{option} must .*got {value}"):
        nt_xent(rows(2, 3), rows(2, 3), **{"temperature": 0.2, option: value})


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"z1 and z2 must both be \(B, D\).*\(2, 3\) and \(3, 3\)"):
        nt_xent(rows(2, 3), rows(3, 3), temperature=0.2)
    with pytest.raises(ValueError, match=r"queue must be \(K, 3\), got \(4, 2\)"):
        info_nce(rows(2, 3), rows(2, 3), temperature=0.2, queue=rows(4, 2))
