"""Captions of shapes: any wording tells its combination, and reads as English."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.datamodules.grammar import COMBINATIONS, VARIANTS, Combination

ALL = [Combination.of(number) for number in range(COMBINATIONS)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, COMBINATIONS - 1), st.integers(0, VARIANTS - 1))
def test_a_caption_of_any_wording_tells_its_combination(number, variant):
    combination = Combination.of(number)
    assert combination.number == number
    assert Combination.parse(combination.caption(variant)) == combination


def test_canonical_captions_and_wordings_all_differ():
    assert len({combination.caption() for combination in ALL}) == COMBINATIONS
    assert len({ALL[1234].caption(variant) for variant in range(VARIANTS)}) == VARIANTS


def test_captions_read_as_english():
    two = Combination(shape=0, colour=0, size=0, position=0, quantity=1)
    assert two.caption() == "two small red circles at the top left"
    one = Combination(shape=4, colour=5, size=1, position=4, quantity=0)
    assert one.caption(2) == "there is one large blue cross in the centre"
    found = {two.caption(v) for v in range(VARIANTS)} | {one._replace(quantity=3).caption(v) for v in range(VARIANTS)}
    for caption in (
        "in the upper left corner, a pair of little red discs",
        "there are two small red discs at the top left",
        "there is a pair of small red discs at the top left",
        "a picture of a group of four big blue plus signs in the middle",
        "four big blue crosses in the middle",
    ):
        assert caption in found


def test_a_caption_that_leaves_something_open_is_named():
    with pytest.raises(ValueError, match="without a position"):
        Combination.parse("two small red circles")
    with pytest.raises(ValueError, match="without a colour"):
        Combination.parse("two small circles at the top, infrared")
    for wrong in (-1, COMBINATIONS):
        with pytest.raises(ValueError, match="number must be from 0 to 4607"):
            Combination.of(wrong)
    with pytest.raises(ValueError, match="variant must be from 0 to 63, got 64"):
        ALL[0].caption(64)
