import pytest
import torch

from lit_ssl.losses import normalize_patches
from lit_ssl.networks import PatchGrid, mask_of, random_keep
from lit_ssl.networks.reconstruction import reconstruction_columns

GRID = PatchGrid((8, 12), (4, 4), 3)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)


@pytest.fixture
def clean():
    return torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keep():
    return random_keep(torch.arange(5), "keep", GRID.tokens, 2)


def columns(clean, predicted, keep, **kwargs):
    return reconstruction_columns(clean, predicted, keep, GRID, mean=MEAN, std=STD, **kwargs)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_perfect_prediction_is_the_image(clean, keep, normalized, everywhere):
    predicted = GRID.patchify((clean - MEAN) / STD)
    if normalized:
        predicted, _, _ = normalize_patches(predicted)
    found = columns(clean, predicted, keep, normalized=normalized, everywhere=everywhere)
    assert list(found) == ["input", "masked", "output"]
    torch.testing.assert_close(found["output"], clean)
    assert torch.equal(found["input"], clean)


def test_only_hidden_patches_are_gray_and_painted(clean, keep):
    hidden = GRID.pixels(mask_of(keep, GRID.tokens)).expand_as(clean)
    above = torch.full((5, GRID.tokens, GRID.values), 100.0)  # far out of range
    found = columns(clean, above, keep, normalized=False)
    assert hidden.sum(1).bool().flatten(1).float().mean(1).tolist() == pytest.approx([4 / 6] * 5)
    assert (found["masked"][hidden] == 0.5).all()
    assert (found["output"][hidden] == 1).all()
    for name in ("masked", "output"):
        assert torch.equal(found[name][~hidden], clean[~hidden])
    assert (columns(clean, above, keep, normalized=False, everywhere=True)["output"] == 1).all()


def test_pictures_are_float32_whatever_the_network_computes_in(clean, keep):
    for dtype in (torch.bfloat16, torch.float64):
        predicted = torch.zeros(5, GRID.tokens, GRID.values, dtype=dtype)
        found = columns(clean.to(dtype), predicted, keep, normalized=True)
        assert {column.dtype for column in found.values()} == {torch.float32}
