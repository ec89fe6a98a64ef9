"""Recall at k and ranks against a plain reference, ties, duplicates and chance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.evaluation import format_retrieval, retrieval
from lit_ssl.evaluation import retrieval as module_function
from lit_ssl.evaluation.retrieval import Retrieval


def features(n, width=16, seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, width, generator=generator)
    return image, image + noise * torch.randn(n, width, generator=generator)


def reference(query, gallery, groups, k):
    """One query at a time, by sorting; without ties."""
    found, ranks = [], []
    for i in range(len(query)):
        order = sorted(range(len(gallery)), key=lambda j: -float(torch.cosine_similarity(query[i], gallery[j], dim=0)))
        rank = next(place for place, j in enumerate(order, 1) if groups[j] == groups[i])
        found.append(rank <= k)
        ranks.append(rank)
    ranks = sorted(ranks)
    middle = len(ranks) // 2
    median = ranks[middle] if len(ranks) % 2 else (ranks[middle - 1] + ranks[middle]) / 2
    return sum(found) / len(found), median


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 23), st.integers(1, 25), st.integers(0, 100), st.booleans())
def test_it_is_what_sorting_gives(n, k, seed, duplicates):
    image, text = features(n, seed=seed, noise=2.0)
    groups = torch.arange(n) % max(1, n // 2) if duplicates else None
    scores = retrieval(image, text, ks=(k,), groups=groups)
    groups = torch.arange(n) if groups is None else groups
    assert (scores.i2t[k], scores.i2t_median_rank) == pytest.approx(reference(image, text, groups, k))
    assert (scores.t2i[k], scores.t2i_median_rank) == pytest.approx(reference(text, image, groups, k))


def test_the_two_directions_are_not_mixed_up():
    """All captions lie nearest to image 0, which so finds its own; each caption finds image 0 alone."""
    image = torch.eye(4) + torch.tensor([[3.0, 0, 0, 0]]) * torch.tensor([[1.0], [0], [0], [0]])
    text = torch.eye(4) + torch.tensor([[2.0, 0, 0, 0]])
    scores = retrieval(image, text, ks=(1,))
    assert scores.i2t == {1: 1.0}
    assert scores.t2i == {1: 0.25}


def test_perfect_and_reversed():
    image, text = features(50)
    scores = retrieval(image, 7 * text, ks=(1, 5))
    assert scores.i2t == scores.t2i == {1: 1.0, 5: 1.0}
    assert scores.i2t_median_rank == scores.t2i_median_rank == 1
    worst = retrieval(image, -text, ks=(1, 50))
    assert worst.i2t == {1: 0.0, 50: 1.0}
    assert worst.i2t_median_rank == 50


def test_rows_of_one_caption_are_hits_of_one_another():
    image, text = features(6)
    swapped = text[[1, 0, 3, 2, 5, 4]]
    assert retrieval(image, swapped, ks=(1,)).i2t == {1: 0.0}
    scores = retrieval(image, swapped, ks=(1,), groups=torch.tensor([7, 7, -3, -3, 2, 2]))
    assert scores.i2t == scores.t2i == {1: 1.0}
    assert scores.chance[1] == pytest.approx(2 / 6)


# Chance and ties


@pytest.mark.parametrize("k", [1, 2, 5, 9, 10, 11])
def test_chance_is_one_less_the_share_of_draws_without_a_hit(k):
    image, text = features(10)
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 4, 5])
    sizes = [4, 4, 4, 4, 2, 2, 1, 1, 1, 1]
    expected = sum(1 - math.comb(10 - m, k) / math.comb(10, k) if k <= 10 else 1.0 for m in sizes) / 10
    assert retrieval(image, text, ks=(k,), groups=groups).chance[k] == pytest.approx(expected)


def test_chance_of_different_captions_is_k_of_n():
    scores = retrieval(*features(1152), ks=(1, 5))
    assert scores.chance == pytest.approx({1: 1 / 1152, 5: 5 / 1152}, rel=1e-9)
    assert scores.chance_median_rank == pytest.approx((1152 + 1) / 2)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 0, 1, 2, 3, 4, 4, 4])])
def test_a_collapsed_encoder_scores_chance(groups):
    point = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    scores = retrieval(point.repeat(8, 1), point.repeat(8, 1), ks=(1, 3), groups=groups)
    assert scores.i2t == scores.t2i == scores.chance
    assert scores.i2t_median_rank == scores.chance_median_rank


def test_ties_behind_a_better_other_are_in_random_order():
    """The query's hit shares its similarity with two others, behind one better: ranks 2, 3 and 4 are alike."""
    image = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    text = torch.tensor([[0.0, 1], [1, 0], [0, 1], [0, 1]])
    alone = retrieval(image, text, ks=(1, 2, 3, 4))
    # image 0: behind text 1, level with two others; image 1: behind three; images 2 and 3: level with two others.
    assert alone.i2t == pytest.approx({1: (0 + 0 + 2 / 3) / 4, 2: (1 / 3 + 4 / 3) / 4, 3: (2 / 3 + 2) / 4, 4: 1.0})
    assert alone.i2t_median_rank == pytest.approx((2 + 3) / 2)  # of 3, 4, 2 and 2


def test_chunks_do_not_matter(monkeypatch):
    import sys

    module = sys.modules["lit_ssl.evaluation.retrieval"]
    image, text = features(40, noise=1.5)
    groups = torch.arange(40) // 3
    whole = retrieval(image, text, groups=groups)
    monkeypatch.setattr(module, "_SIMILARITIES", 100)
    assert retrieval(image, text, groups=groups) == whole


def test_other_dtypes_and_widths():
    image, text = features(20, noise=1.0)
    expected = retrieval(image, text)
    assert retrieval(image.double(), text.double()) == expected
    assert isinstance(retrieval(image.bfloat16(), text.bfloat16()), Retrieval)
    assert module_function is retrieval


def test_the_table():
    text = format_retrieval(retrieval(*features(1152), ks=(1, 5)))
    assert text.splitlines() == [
        "                       R@1       R@5   median rank",
        "image to text     1.000000  1.000000           1.0",
        "text to image     1.000000  1.000000           1.0",
        "chance of 1,152   0.000868  0.004340         576.5",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": torch.zeros(4)}, "image must be a floating-point tensor"),
        ({"text": torch.zeros(4, 3, dtype=torch.int64)}, "text must be a floating-point tensor"),
        ({"text": torch.full((4, 3), torch.nan)}, "text must be finite"),
        ({"text": torch.zeros(4, 2)}, r"the same shape, got \(4, 3\) and \(4, 2\)"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, r"groups must be an integer tensor of shape \(4,\)"),
        ({"groups": torch.zeros(4)}, "groups must be an integer tensor"),
        ({"ks": (1, 0)}, "ks must be an integer of at least 1, got 0"),
        ({"ks": (1.5,)}, "ks must be an integer"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    arguments = {"image": torch.ones(4, 3), "text": torch.ones(4, 3), **change}
    with pytest.raises(ValueError, match=words):
        retrieval(arguments.pop("image"), arguments.pop("text"), **arguments)
