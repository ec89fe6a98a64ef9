import math
from dataclasses import fields

import pytest
import torch

from lit_ssl.random import sample_key
from lit_ssl.views.augment import Recipe, draw

FULL = Recipe(
    scale=(0.2, 0.9),
    flip=0.5,
    jitter=0.8,
    colour=(0.4, 1.6, 0.2, 0.1),
    grayscale=0.2,
    blur=0.3,
    sigma=(0.1, 2.0),
    solarize=0.15,
)
COUNT = 40_000


@pytest.fixture(scope="module")
def draws():
    return draw(sample_key(0, 0, torch.arange(COUNT)), "view", [FULL, FULL], (32, 32))


def parts(draws):
    return {f.name: getattr(draws, f.name) for f in fields(draws)}


def assert_uniform(values, low, high):
    place = (values.sort().values - low) / (high - low)
    assert place[0] >= 0
    assert place[-1] <= 1
    expected = (torch.arange(len(values)) + 0.5) / len(values)
    assert (place - expected).abs().max() < 1.95 / math.sqrt(len(values))  # Kolmogorov's bound at one in a thousand


@pytest.mark.parametrize(
    ("name", "p"), [("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.3), ("solarize", 0.15)]
)
def test_how_often(draws, name, p):
    for view in getattr(draws, name).chunk(2):
        assert abs(view.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / COUNT)


def test_how_strongly(draws):
    for first_or_second in (slice(0, COUNT), slice(COUNT, None)):
        factors = draws.factors[first_or_second]
        assert_uniform(factors[:, 0], 0.6, 1.4)
        assert_uniform(factors[:, 1], 0.0, 2.6)  # 1 - 1.6 would be negative: torchvision starts at 0
        assert_uniform(factors[:, 2], 0.8, 1.2)
        assert_uniform(factors[:, 3], -0.1, 0.1)
        assert_uniform(draws.sigma[first_or_second], 0.1, 2.0)


def test_all_orders_are_equally_likely(draws):
    number = (draws.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(number, return_counts=True)[1].double()
    assert len(counts) == 24
    expected = 2 * COUNT / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-squared, 23 degrees, one in a thousand


def test_draws_are_independent_of_one_another_and_between_views(draws):
    columns = torch.stack([draws.flip, draws.jitter, draws.grayscale, draws.blur, draws.solarize, draws.sigma], 1)
    columns = torch.cat([columns.double(), draws.factors, draws.box.double()[:, :1]], 1)
    table = torch.cat(columns.chunk(2), dim=1).T  # both views of a sample side by side
    off_diagonal = torch.corrcoef(table) - torch.eye(len(table))
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(COUNT)


def test_a_draw_belongs_to_its_key():
    key = sample_key(3, 1, torch.arange(50))
    whole = parts(draw(key, "view", [FULL, FULL], (20, 30)))
    order = torch.randperm(50, generator=torch.manual_seed(0))
    shuffled = parts(draw(key[order], "view", [FULL, FULL], (20, 30)))
    alone = parts(draw(key[7:8], "view", [FULL, FULL], (20, 30)))
    one_view = parts(draw(key, "view", [FULL], (20, 30)))
    for name, value in whole.items():
        first, second = value.chunk(2)
        assert torch.equal(shuffled[name], torch.cat([first[order], second[order]])), name
        assert torch.equal(alone[name], torch.stack([first[7], second[7]])), name
        assert torch.equal(one_view[name], first), name


def test_no_global_random_number_is_used():
    state = torch.random.get_rng_state()
    draw(torch.arange(4), "view", [FULL], (8, 8))
    assert torch.equal(state, torch.random.get_rng_state())
