import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.losses import sigreg
from lit_ssl.random import normal, step_key

GAUSSIAN, ZERO = 1.0525, 0.4020  # expectation for Gaussian samples at any N, and value for all-zero ones over N


def gaussian(*shape, seed=0, dtype=torch.float64):
    return normal(step_key(seed, 0), "test", shape)[0].to(dtype)


def reference(z, key, num_directions, knots, t_max):
    """METHODS' formula, term by term: views, directions and knots in Python loops."""
    directions = normal(key, "sigreg/directions", (z.shape[-1], num_directions))[0].T
    terms = []
    for view in z if z.ndim == 3 else [z]:
        for a in directions:
            x = view @ (a / a.square().sum().sqrt())
            statistic = 0.0
            for k in range(knots):
                t = t_max * k / (knots - 1)
                phi = math.exp(-(t**2) / 2)
                trapezoid = t_max / (knots - 1) * (0.5 if k in (0, knots - 1) else 1.0)
                distance = (torch.cos(t * x).mean() - phi) ** 2 + torch.sin(t * x).mean() ** 2
                statistic = statistic + 2 * trapezoid * phi * distance
            terms.append(len(view) * statistic)
    return torch.stack(terms).mean()


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(1, 3), (6, 2), (1, 5, 4), (3, 4, 1), (2, 7, 5)]),
    st.integers(1, 4),
    st.integers(2, 18),
    st.sampled_from([0.5, 3.0, 5.0]),
    st.floats(0.01, 5),
    st.integers(0, 100),
)
def test_it_is_the_formula(shape, num_directions, knots, t_max, scale, seed):
    z = (gaussian(*shape, seed=seed) * scale).requires_grad_()
    key = step_key(seed, 3)
    ours = sigreg(z, key=key, num_directions=num_directions, knots=knots, t_max=t_max)
    theirs = reference(z, key, num_directions, knots, t_max)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(value, z) for value in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("rows", [1, 8, 64, 256])
def test_gaussian_samples_give_one_expectation_at_any_number_of_rows(rows):
    z = gaussian(64, rows, 128)
    assert sigreg(z, num_directions=128).item() == pytest.approx(GAUSSIAN, rel=0.03)


@pytest.mark.parametrize("shape", [(1, 4), (50, 4), (3, 50, 4)])
def test_zeros_give_their_number_times_a_constant(shape):
    value = sigreg(torch.zeros(shape), num_directions=5)
    assert value.item() / shape[-2] == pytest.approx(ZERO, abs=5e-5)


def test_collapse_grows_with_the_number_of_rows():
    point = gaussian(1, 8)
    for n in (16, 256):
        assert sigreg(point.expand(n, 8)).item() > 0.1 * n
    line = gaussian(256, 1) * torch.ones(8)  # of rank one, with variance 8 along its line
    assert sigreg(line) > 10 * sigreg(gaussian(256, 8))


def test_descending_it_makes_a_collapsed_cloud_isotropic():
    z = (gaussian(128, 4, dtype=torch.float32) * torch.tensor([1e-2, 1e-2, 1.0, 1e-3]) + 0.5).requires_grad_()
    for step in range(200):
        sigreg(z, key=step_key(0, step), num_directions=32).backward()
        with torch.no_grad():
            z -= z.grad
        z.grad = None
    assert z.mean(0).norm() < 0.1
    spectrum = torch.linalg.eigvalsh(z.detach().T.cov())
    assert spectrum.min() > 0.8
    assert spectrum.max() < 2 * spectrum.min()


def test_it_has_no_preferred_axes():
    """Rotated embeddings get the same value in expectation over directions, though not along the few of one step."""
    z = gaussian(64, 5) * torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])
    rotation = torch.linalg.qr(gaussian(5, 5, seed=1)).Q
    many = [sigreg(x, num_directions=20_000).item() for x in (z, z @ rotation)]
    few = [sigreg(x, num_directions=4).item() for x in (z, z @ rotation)]
    assert many[0] == pytest.approx(many[1], rel=0.02)
    assert abs(few[0] - few[1]) > 0.05 * few[0]


def test_the_key_decides_the_directions():
    z = gaussian(32, 8) * 0.5
    value = sigreg(z, key=step_key(1, 7), num_directions=4)
    assert value == sigreg(z, key=step_key(1, 7), num_directions=4)
    assert sigreg(z, num_directions=4) == sigreg(z, key=step_key(0, 0), num_directions=4)
    others = (step_key(1, 8), step_key(2, 7))
    assert len({value.item(), *(sigreg(z, key=key, num_directions=4).item() for key in others)}) == 3


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sigreg(gaussian(4, 3))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_it_computes_in_float32_or_wider(dtype):
    z = (gaussian(2, 64, 8) * 0.7).to(dtype)
    value = sigreg(z)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(value.double(), sigreg(z.double()), rtol=1e-5, atol=0)


def test_autocast_changes_nothing():
    z = gaussian(2, 64, 8, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(z)
    assert torch.equal(inside, sigreg(z))


def test_no_rows_at_all_are_no_loss():
    z = torch.zeros(2, 0, 3, requires_grad=True)
    value = sigreg(z)
    value.backward()
    assert value == 0
    assert z.grad.shape == z.shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_directions": 0}, "num_directions must be an integer of at least 1, got 0"),
        ({"knots": 1}, "knots must be an integer of at least 2, got 1"),
        ({"t_max": 0.0}, r"t_max must be a finite number above 0, got 0\.0"),
        ({"key": torch.zeros(2, dtype=torch.int64)}, r"key must be one key, of shape \(1,\), got \(2,\)"),
        ({"z": torch.zeros(3)}, r"z must be floating-point \(V, N, D\) or \(N, D\), got torch.float32 \(3,\)"),
        ({"z": torch.zeros(3, 2, dtype=torch.int64)}, "z must be floating-point .* got torch.int64"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sigreg(**{"z": torch.zeros(3, 2), **kwargs})
