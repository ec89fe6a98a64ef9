"""Pictures of shapes: nothing but seed and index changes them, and they show what their captions say."""

import hashlib

import pytest
import torch
from few_shapes import loaded
from ranks import run_ranks

from lit_ssl.datamodules import CaptionedShapes
from lit_ssl.datamodules.captioned_shapes import HELD_OUT
from lit_ssl.datamodules.shapes import PALETTE


@pytest.fixture(scope="module")
def data():
    return loaded()


# A picture is a pure function of (data_seed, index)


def test_the_batch_does_not_change_a_picture(data):
    indices = list(range(0, 4000, 13))
    together = data.train_set.__getitems__(indices)
    backwards = data.train_set.__getitems__(indices[::-1])
    assert torch.equal(together["image"], backwards["image"].flip(0))
    assert together["captions"] == backwards["captions"][::-1]
    for place in range(0, len(indices), 17):
        assert torch.equal(data.train_set[indices[place]]["image"], together["image"][place])
    for rows in (3, 7, 64):
        assert torch.equal(data.train_set.__getitems__(indices[:rows])["image"], together["image"][:rows])


def digest_with_two_threads(rank, world):
    torch.set_num_threads(2)
    data = CaptionedShapes()
    data.setup()
    image = data.val_set.__getitems__(list(range(len(data.val_set))))["image"]
    return hashlib.blake2b(image.numpy().tobytes()).hexdigest()


def test_workers_threads_and_processes_do_not_change_a_picture(data):
    expected = torch.cat([batch["image"] for batch in data.loader(data.val_set)])
    workers = loaded(num_workers=1, batch_size=100)
    assert torch.equal(torch.cat([batch["image"] for batch in workers.loader(workers.val_set)]), expected)
    digest = hashlib.blake2b(expected.numpy().tobytes()).hexdigest()
    assert run_ranks(digest_with_two_threads, 1) == [digest]


def test_torch_s_default_dtype_does_not_change_a_picture(data):
    expected = data.val_set[4]["image"]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(data.val_set[4]["image"], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_pictures_follow_the_data_seed_and_not_the_run_s():
    first, run, other = loaded(), loaded(seed=9), loaded(data_seed=1)
    rows = list(range(20))
    assert torch.equal(first.train_set.__getitems__(rows)["image"], run.train_set.__getitems__(rows)["image"])
    for a, b in zip(
        first.train_set.__getitems__(rows)["image"], other.train_set.__getitems__(rows)["image"], strict=True
    ):
        assert not torch.equal(a, b)


def test_statistics_are_those_of_the_pictures(data):
    x = data.train_set.__getitems__(list(range(4000)))["image"].double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(x.mean(1), torch.tensor(data.spec.mean, dtype=x.dtype), atol=0.003, rtol=0)
    torch.testing.assert_close(x.std(1), torch.tensor(data.spec.std, dtype=x.dtype), atol=0.003, rtol=0)


# A picture shows what its caption says


def inked(x):
    """How far the pixels of (..., 3, S, S) are from the gray of the background, light or dark: (..., S, S)."""
    chroma = x - x.mean(-3, keepdim=True)
    tint = chroma.flatten(-2).median(-1).values[..., None, None]
    return (chroma - tint).square().sum(-3).sqrt()


def read(image):
    """Colour, number, mean place (x, y) and share of pixels of an object, as seen in uint8 (3, S, S)."""
    x = image.float() / 255
    ink = inked(x)
    mask = ink > 0.5 * ink.flatten().topk(4).values.mean()
    number, seen = 0, torch.zeros_like(mask)
    while bool((mask & ~seen).any()):
        number += 1
        start = (mask & ~seen).nonzero()[0]
        part = torch.zeros_like(mask)
        part[start[0], start[1]] = True
        while True:  # grown until it stops
            grown = torch.nn.functional.max_pool2d(part[None].float(), 3, 1, 1)[0].bool() & mask
            if torch.equal(grown, part):
                break
            part = grown
        seen |= part
    strongest = ink.flatten().topk(4).indices
    colour = (PALETTE - x.flatten(1)[:, strongest].mean(1)).square().sum(1).argmin()
    places = mask.nonzero().float() / len(mask[0])
    return int(colour), number, places.mean(0).flip(0), int(mask.sum()) / number / mask.numel()


@pytest.mark.parametrize("side", [28, 32, 64])
def test_count_colour_and_position_can_be_read_off(side):
    data = loaded(image_size=side)
    rows = list(range(0, HELD_OUT, 8))
    centres = torch.tensor([(x, y) for y in (0.28, 0.5, 0.72) for x in (0.28, 0.5, 0.72)])
    for i, image in zip(rows, data.val_set.__getitems__(rows)["image"], strict=True):
        combination = data.val_set.combination(i)
        colour, number, place, _ = read(image)
        assert colour == combination.colour, combination.caption()
        assert number == combination.quantity + 1, combination.caption()
        assert (centres - place).square().sum(1).argmin() == combination.position, combination.caption()


def test_size_and_shape_can_be_read_off():
    """Large objects cover twice as much, and each shape looks like the others of its kind."""
    data = loaded(image_size=64)
    rows = [i for i in range(2000) if data.train_set.combination(i).quantity == 0]
    images = data.train_set.__getitems__(rows)["image"]
    area = {}
    for i, image in zip(rows, images, strict=True):
        combination = data.train_set.combination(i)
        area.setdefault((combination.shape, combination.size), []).append(read(image)[3])
    mean = {kind: sum(found) / len(found) for kind, found in area.items()}
    for shape in range(8):
        assert max(area[shape, 0]) < min(area[shape, 1])
        assert 1.9 < mean[shape, 1] / mean[shape, 0] < 2.7  # (3.3 / 2.2) squared is 2.25


def test_shapes_differ():
    """Nearest mean picture of large single objects, cut out around their middle, tells the eight shapes apart."""
    data = loaded(image_size=64)
    rows = [i for i in range(4000) if data.train_set.combination(i)[2::2] == (1, 0)]
    ink = inked(data.train_set.__getitems__(rows)["image"].float() / 255)
    cut, kinds = [], []
    for i, picture in zip(rows, ink, strict=True):
        combination = data.train_set.combination(i)
        y, x_ = (round(64 * (0.28, 0.5, 0.72)[place]) for place in divmod(combination.position, 3))
        window = picture[y - 12 : y + 12, x_ - 12 : x_ + 12]
        cut.append(window / window.norm())
        kinds.append(combination.shape)
    cut, kinds = torch.stack(cut).flatten(1), torch.tensor(kinds)
    even = torch.arange(len(kinds)) % 2 == 0
    means = torch.stack([cut[even & (kinds == shape)].mean(0) for shape in range(8)])
    found = torch.cdist(cut[~even], means).argmin(1)
    assert (found == kinds[~even]).float().mean() > 0.97


def test_a_picture_that_is_not_square_shows_the_square_in_its_middle():
    wide = loaded(image_size=(32, 48)).val_set[0]["image"]
    assert wide.shape == (3, 32, 48)
    square = loaded().val_set[0]["image"]
    colour, number, _, _ = read(wide[:, :, 8:40])
    assert (colour, number) == read(square)[:2]
