import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_ssl import random


def keys(n=20_000, seed=0, epoch=0):
    return random.sample_key(seed, epoch, torch.arange(n))


def test_known_values_do_not_change():
    """Changing the generator changes every run: a deliberate act, not a side effect."""
    key = random.sample_key(0, 0, torch.tensor([0, 1]))
    assert key.tolist() == [5891236913636033516, 332464390134758958]
    assert random.uniform(key, "crop").tolist() == [0.10698714119347708, 0.9866986133958764]
    assert random.permuted(torch.arange(10), 10, 0, "order/0").tolist() == [3, 4, 0, 1, 5, 2, 9, 8, 6, 7]


@given(st.permutations(range(12)), st.integers(0, 2**32 - 1), st.integers(-1, 5))
def test_a_draw_belongs_to_its_sample(order, seed, epoch):
    key = random.sample_key(seed, epoch, torch.arange(12))
    for draw in (random.uniform, random.normal):
        whole = draw(key, "name", (3,))
        assert torch.equal(draw(key[list(order)], "name", (3,)), whole[list(order)])
        assert torch.equal(draw(key[4:5], "name", (3,)), whole[4:5])


def test_uniform_is_uniform_and_named_draws_are_independent():
    a, b = random.uniform(keys(), "a"), random.uniform(keys(), "b")
    other_epoch = random.uniform(keys(epoch=1), "a")
    other_seed = random.uniform(keys(seed=1), "a")
    within = random.uniform(keys(), "a", (2,))
    for x in (a, b, other_epoch, other_seed, within[:, 1]):
        assert x.min() >= 0
        assert x.max() < 1
        histogram = torch.histc(x, 20, 0, 1)
        chi2 = ((histogram - 1000) ** 2 / 1000).sum()
        assert chi2 < 45  # 19 degrees of freedom: p = 0.0007
    stacked = torch.stack([a, b, other_epoch, other_seed, within[:, 1], a.roll(1)])
    assert (torch.corrcoef(stacked) - torch.eye(6)).abs().max() < 0.035  # five standard errors


def test_normal_and_integers_have_their_moments():
    x = random.normal(keys(), "n")
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.03
    assert abs((x**4).mean() - 3) < 0.3
    counts = torch.bincount(random.integers(keys(), "i", 7), minlength=7)
    assert len(counts) == 7
    assert counts.min() > 2600
    assert abs(random.bernoulli(keys(), "p", 0.3).double().mean() - 0.3) < 0.02


@given(st.integers(1, 3000), st.integers(0, 9), st.integers(0, 9))
def test_permuted_is_a_permutation(n, seed, epoch):
    out = random.permuted(torch.arange(n), n, seed, epoch)
    assert torch.equal(out.sort().values, torch.arange(n))
    some = torch.tensor([[0, n // 2], [n - 1, 0]])
    assert torch.equal(random.permuted(some, n, seed, epoch), out[some])  # each place on its own


def test_permuted_looks_random():
    n = 10_007
    a, b = (random.permuted(torch.arange(n), n, 0, e).double() for e in (0, 1))
    position = torch.arange(n).double()
    assert (torch.corrcoef(torch.stack([position, a, b, a.roll(1)])) - torch.eye(4)).abs().max() < 0.05
    first = torch.stack([random.permuted(torch.zeros(1), 10, s, 0) for s in range(2000)]).flatten()
    assert torch.bincount(first, minlength=10).min() > 140


def test_isolated_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with random.isolated(0, "weights"):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with random.isolated(0, "weights"):
        assert torch.equal(torch.rand(2), inside)
    with random.isolated(1, "weights"):
        assert not torch.equal(torch.rand(2), inside)


def test_seed_comes_from_the_argument_then_seed_everything_then_zero(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert random.resolve_seed(None) == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert random.resolve_seed(None) == 7
    assert random.resolve_seed(5) == 5
    for bad in (-1, 2**32, True, 1.5, "1"):
        with pytest.raises(ValueError, match="seed must be"):
            random.resolve_seed(bad)


def test_step_keys_differ_by_step_and_seed():
    draws = {random.uniform(random.step_key(seed, step), "x").item() for seed in range(5) for step in range(5)}
    assert len(draws) == 25
    assert not any(math.isnan(d) for d in draws)
