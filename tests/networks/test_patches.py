"""Cutting images into patches, and choosing which of them are seen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.networks import PatchGrid, mask_of, random_keep, visible_tokens
from lit_ssl.networks.patches import even_patch
from lit_ssl.random import sample_key
from lit_ssl.spec import ImageSpec

sides = st.integers(1, 4)


def keys(rows, seed=0):
    return sample_key(seed, 0, torch.arange(rows))


@settings(deadline=None, max_examples=40)
@given(sides, sides, sides, sides, st.integers(1, 4), st.integers(0, 3))
def test_patches_are_the_squares_of_the_image_row_by_row(rows, columns, p, q, channels, batch):
    grid = PatchGrid((rows * p, columns * q), (p, q), channels)
    x = torch.rand(batch, channels, rows * p, columns * q)
    patches = grid.patchify(x)
    assert (grid.rows, grid.columns) == (rows, columns)
    assert patches.shape == (batch, grid.tokens, grid.values) == (batch, rows * columns, p * q * channels)
    for row in range(rows):
        for column in range(columns):
            square = x[:, :, row * p : (row + 1) * p, column * q : (column + 1) * q]
            expected = square.permute(0, 2, 3, 1).flatten(1)  # the channel runs fastest
            assert torch.equal(patches[:, row * columns + column], expected)
    assert torch.equal(grid.unpatchify(patches), x)


def test_a_patchs_value_reaches_all_its_pixels():
    grid = PatchGrid((4, 6), (2, 3), 1)
    mask = torch.tensor([[True, False, False, True]])
    top, bottom = [True] * 3 + [False] * 3, [False] * 3 + [True] * 3
    assert grid.pixels(mask)[0, 0].tolist() == [top, top, bottom, bottom]


def test_patches_must_divide_the_image():
    with pytest.raises(ValueError, match=r"patches of \(4, 5\) pixels do not divide an image of \(8, 12\)"):
        PatchGrid((8, 12), (4, 5), 3)


@pytest.mark.parametrize(
    ("size", "patch"), [(28, 4), (32, 4), (64, 8), (96, 12), (16, 2), ((32, 48), 4), (20, 2), (7, 1), (37, None)]
)
def test_an_even_patch_leaves_about_eight_along_the_shorter_side(size, patch):
    assert even_patch(ImageSpec(size, 1)) == patch


@pytest.mark.parametrize(
    ("tokens", "ratio", "visible"),
    [(196, 0.75, 49), (49, 0.75, 12), (10, 0.9, 1), (100, 0.9, 10), (2, 0.01, 1), (2, 0.99, 1), (784, 0.5, 392)],
)
def test_as_many_tokens_stay_as_the_ratio_says(tokens, ratio, visible):
    assert visible_tokens(tokens, ratio) == visible


@given(st.integers(2, 2000), st.floats(0.001, 0.999))
def test_something_is_seen_and_something_hidden(tokens, ratio):
    assert 1 <= visible_tokens(tokens, ratio) <= tokens - 1


def test_a_single_token_cannot_be_masked():
    with pytest.raises(ValueError, match=r"at least 2 patches an image, got 1"):
        visible_tokens(1, 0.5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.data())
def test_the_visible_are_a_subset_and_the_mask_is_the_rest(tokens, data):
    visible = data.draw(st.integers(0, tokens))
    keep = random_keep(keys(5), "mask", tokens, visible)
    assert keep.shape == (5, visible)
    assert keep.dtype == torch.int64
    mask = mask_of(keep, tokens)
    for row, hidden in zip(keep.tolist(), mask, strict=True):
        assert len(set(row)) == visible
        assert set(row) == set(range(tokens)) - set(hidden.nonzero().flatten().tolist())


def test_a_rows_subset_depends_on_its_key_and_the_name_alone():
    key = keys(50)
    whole = random_keep(key, "mask", 16, 4)
    order = torch.randperm(50)
    assert torch.equal(random_keep(key[order], "mask", 16, 4), whole[order])
    assert torch.equal(torch.cat([random_keep(key[:1], "mask", 16, 4), random_keep(key[1:], "mask", 16, 4)]), whole)
    assert not torch.equal(random_keep(key, "other", 16, 4), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 50


def test_every_place_is_seen_equally_often():
    seen = ~mask_of(random_keep(keys(20000), "mask", 16, 4), 16)
    share = seen.double().mean(0)  # binomial: 0.25 with a deviation of 0.0031
    assert (share - 0.25).abs().max() < 0.015
    together = (seen[:, 3] & seen[:, 4]).double().mean()  # 4 * 3 / (16 * 15)
    assert abs(together - 0.05) < 0.008


def test_the_first_of_ordered_tokens_are_a_random_subset_too():
    """Two views are parts of one draw: neither may show more of the top of the image than the other."""
    keep = random_keep(keys(20000), "mask", 16, 16, ordered=True)
    shown = ~mask_of(keep[:, :8], 16)
    assert (shown.float().mean(0) - 0.5).abs().max() < 0.02
