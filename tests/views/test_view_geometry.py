import math

import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import RandomResizedCrop

from lit_ssl.random import sample_key, uniform
from lit_ssl.views.geometry import TRIES, axes, axis, crop_boxes, resample, sampler


def photo(rows, channels, height, width):
    return torch.randint(0, 256, (rows, channels, height, width), generator=torch.manual_seed(0)).to(torch.uint8)


def cropped(image, box, flip, size, dtype=torch.float32):
    return resample(image, *(a.to(dtype, image.device) for a in axes(box, flip, tuple(image.shape[2:]), size)))


def boxes_for(rows, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    chance = uniform(sample_key(0, 0, torch.arange(rows)), "crop", (2 * TRIES + 2,))
    expand = torch.ones(rows, 1, dtype=torch.float64)
    return crop_boxes(chance, size, expand * torch.tensor(scale), expand * torch.tensor(ratio, dtype=torch.float64))


@pytest.mark.parametrize(
    ("source", "target"),
    [((32, 32), (32, 32)), ((40, 24), (32, 32)), ((100, 120), (28, 36)), ((20, 90), (80, 76)), ((90, 96), (96, 96))],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_crop_with_flip_is_torchvisions(source, target, channels):
    image = photo(12, channels, *source)
    box = boxes_for(12, source)
    flip = torch.arange(12) % 2 == 0
    for dtype, tolerance in ((torch.float32, 2e-4), (torch.float64, 1e-9)):
        got = cropped(image, box, flip, target, dtype)
        for row in range(12):
            want = F.resized_crop(image[row].to(dtype) / 255, *box[row].tolist(), list(target), antialias=True)
            want = F.horizontal_flip(want) if flip[row] else want
            torch.testing.assert_close(got[row], want, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("source", "target"), [((32, 32), (32, 32)), ((1, 1), (1, 2)), ((9, 30), (28, 36)), ((40, 9), (32, 9))]
)
def test_a_sampler_resamples_any_images_in_any_order(source, target):
    image = photo(5, 3, *source).transpose(2, 3).contiguous().transpose(2, 3)
    which = torch.tensor([3, 0, 0, 4, 1, 2, 3])
    box, flip = boxes_for(7, source), torch.arange(7) % 2 == 0
    down, across = axes(box, flip, source, target)
    want = resample(image[which], down, across)
    crop = sampler(image, which, down, across)
    torch.testing.assert_close(torch.cat([crop(slice(0, 3)), crop(slice(3, 7))]), want, atol=1e-12, rtol=0)


def test_a_resample_keeps_the_range():
    image = photo(8, 3, 50, 50) // 255 * 255
    for size in ((32, 32), (64, 64), (100, 80)):
        view = cropped(image, boxes_for(8, (50, 50)), None, size)
        assert -1e-5 <= view.min() <= view.max() <= 1 + 1e-5


def test_the_whole_box_at_the_same_size_is_the_image_itself():
    image = photo(2, 3, 32, 32)
    whole = torch.tensor([[0, 0, 32, 32]]).expand(2, 4)
    torch.testing.assert_close(cropped(image, whole, None, (32, 32)), image / 255)


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize(("source", "target"), [(32, 32), (50, 8), (7, 1), (1, 5)])
def test_weights_sum_to_one(source, target, beyond):
    start, length = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1.0, source], dtype=torch.float64)
    weights = axis(start, length, torch.tensor([True, False]), source, target, beyond).weights()
    assert weights.shape == (2, target, source)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, target, dtype=torch.float64))


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize(("source", "target"), [(32, 32), (1, 5), (5, 7)])
def test_taps_are_the_weights_without_the_zeros(source, target, beyond):
    start, length = (
        torch.tensor([0.0, source - 1], dtype=torch.float64),
        torch.tensor([source, 1.0], dtype=torch.float64),
    )
    along = axis(start, length, torch.tensor([False, True]), source, target, beyond)
    place, weight = along.taps()
    assert place.shape == weight.shape == (2, target, 2)
    torch.testing.assert_close(torch.zeros(2, target, source).double().scatter_add(2, place, weight), along.weights())


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((48, 96), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((64, 40), (0.05, 0.4), (0.5, 2)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(size, scale, ratio):
    count = 20_000
    ours = boxes_for(count, size, scale, ratio).double()
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(count)]
    ).double()
    for column in range(4):
        both = torch.cat([ours[:, column], theirs[:, column]])
        grid = both.unique()
        cumulative = [
            torch.searchsorted(part.sort().values, grid, right=True) / count
            for part in (ours[:, column].contiguous(), theirs[:, column].contiguous())
        ]
        # Kolmogorov and Smirnov: 1.95 sqrt(2 / n) is passed by chance once in a thousand; the seeds are fixed.
        assert (cumulative[0] - cumulative[1]).abs().max() < 1.95 * math.sqrt(2 / count)
    assert torch.equal(ours, ours.round())
    assert (ours[:, 0] + ours[:, 2]).max() <= size[0]
    assert (ours[:, 1] + ours[:, 3]).max() <= size[1]
    assert ours[:, :2].min() >= 0
    assert ours[:, 2:].min() >= 1


@pytest.mark.parametrize("size", [(4, 90), (90, 4), (3, 3)])
def test_a_box_that_never_fits_is_the_largest_central_crop(size):
    blank = torch.empty(1, *size)
    scale, ratio = (1.0, 1.0), (1.2, 1.3)  # never fits: as large as the image, and of another aspect
    want = torch.tensor(RandomResizedCrop.get_params(blank, list(scale), list(ratio)))
    assert (boxes_for(5, size, scale, ratio) == want).all()
