import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.losses import masked_mse, normalize_patches


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masks(b, length, seed=0):
    return torch.rand(b, length, generator=torch.Generator().manual_seed(seed)) < 0.6


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_it_is_the_mean_over_masked_patches(b, length, width, weighted, seed):
    pred, target = draw(b, length, width, seed=seed), draw(b, length, width, seed=seed + 100)
    mask = masks(b, length, seed)
    if weighted:
        mask = mask * draw(b, length, seed=seed + 200).abs()
    total, count = 0.0, 0.0
    for i in range(b):
        for j in range(length):
            error = sum((pred[i, j, k] - target[i, j, k]) ** 2 for k in range(width)) / width
            total, count = total + mask[i, j] * error, count + mask[i, j]
    expected = total / count if count > 0 else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(masked_mse(pred, target, mask), expected)


def test_visible_patches_and_the_target_get_no_gradient():
    pred, target, mask = draw(3, 5, 4).requires_grad_(), draw(3, 5, 4, seed=1).requires_grad_(), masks(3, 5)
    masked_mse(pred, target, mask).backward()
    torch.testing.assert_close(pred.grad, 2 * (pred - target).detach() * mask[..., None] / 4 / mask.sum())
    assert target.grad is None


def test_nothing_masked_is_zero_and_so_is_its_gradient():
    for b in (2, 0):
        pred = draw(b, 3, 4).requires_grad_()
        loss = masked_mse(pred, draw(b, 3, 4, seed=1), torch.zeros(b, 3, dtype=torch.bool))
        loss.backward()
        assert loss == 0
        assert (pred.grad == 0).all()


def test_half_precision_inputs_are_computed_in_float32():
    pred, target, mask = draw(8, 20, 48).bfloat16(), draw(8, 20, 48, seed=1).bfloat16(), masks(8, 20)
    exact = masked_mse(pred.double(), target.double(), mask)
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_mse(pred, target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 3, 5), (2, 3)), ((2, 3, 4), (2, 3, 4), (2, 4)), ((2, 3), (2, 3), (2, 3))]
)
def test_bad_shapes_are_named(shapes):
    with pytest.raises(ValueError, match=r"pred and target must be \(B, L, P\) and mask \(B, L\), got \(2, 3"):
        masked_mse(*(torch.zeros(shape) for shape in shapes))


# Normalised patches


def test_the_variance_is_unbiased_and_eps_is_1e_6():
    patches = draw(2, 3, 5) * 0.01 + 7  # small enough that eps is seen
    normal, mean, std = normalize_patches(patches)
    for i in range(2):
        for j in range(3):
            values = patches[i, j].tolist()
            centre = sum(values) / 5
            spread = (sum((v - centre) ** 2 for v in values) / 4 + 1e-6) ** 0.5
            assert mean[i, j].item() == pytest.approx(centre, rel=1e-12)
            assert std[i, j].item() == pytest.approx(spread, rel=1e-12)
            assert normal[i, j].tolist() == pytest.approx([(v - centre) / spread for v in values], rel=1e-9)
    torch.testing.assert_close(normal * std + mean, patches)


def test_a_patch_of_one_colour_stays_finite():
    patches = torch.full((1, 2, 9), 0.7, requires_grad=True)
    normal, _, std = normalize_patches(patches)
    assert normal.abs().max() < 1e-3
    torch.testing.assert_close(std, torch.full((1, 2, 1), 1e-3))
    normal.square().sum().backward()
    assert patches.grad.isfinite().all()


def test_statistics_are_at_least_float32():
    patches = (draw(2, 3, 48) * 0.1 + 2).bfloat16()
    normal, _, _ = normalize_patches(patches)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal, normalize_patches(patches.double())[0].float())


def test_a_single_number_cannot_be_normalised():
    with pytest.raises(ValueError, match=r"at least 2 numbers to be normalised, got \(2, 3, 1\)"):
        normalize_patches(torch.zeros(2, 3, 1))
