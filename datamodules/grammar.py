"""The little language of :class:`~lit_ssl.datamodules.CaptionedShapes`: what a picture can show, and how to say it."""

from __future__ import annotations

import re
from itertools import product
from math import prod
from typing import NamedTuple

__all__ = [
    "COLOURS",
    "COMBINATIONS",
    "COUNTS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "VARIANTS",
    "Combination",
    "class_names",
    "class_templates",
]

# Each value's ways to say it; the first is the one that canonical captions and class names use.
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "bar": ("bar", "stick"),
    "crescent": ("crescent", "moon"),
}
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
POSITIONS = {
    "top left": ("at the top left", "in the upper left corner"),
    "top": ("at the top", "near the upper edge"),
    "top right": ("at the top right", "in the upper right corner"),
    "left": ("on the left", "near the left edge"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "near the right edge"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "near the lower edge"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
COUNTS = {1: ("one", "a single"), 2: ("two", "a pair of"), 3: ("three", "a trio of"), 4: ("four", "a group of four")}
_FRAMES = ("{things} {place}", "{place}, {things}", "there {be} {things} {place}", "a picture of {things} {place}")

_SHAPES, _SIZES, _POSITIONS, _COUNTS = (tuple(table.values()) for table in (SHAPES, SIZES, POSITIONS, COUNTS))
_RADIX = (len(SHAPES), len(COLOURS), len(SIZES), len(POSITIONS), len(COUNTS))

COMBINATIONS = prod(_RADIX)
"""How many pictures can be told apart by their captions."""

VARIANTS = len(_FRAMES) * 2**4
"""How many ways there are to say the same."""


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


class Combination(NamedTuple):
    """What a picture shows: each field is a place in its table, so that a ``quantity`` of 0 is one object."""

    shape: int
    colour: int
    size: int
    position: int
    quantity: int

    @classmethod
    def of(cls, number: int) -> Combination:
        """The combination with this number, from 0 to ``COMBINATIONS - 1``."""
        if not 0 <= number < COMBINATIONS:
            raise ValueError(f"number must be from 0 to {COMBINATIONS - 1}, got {number!r}")
        places = []
        for base in reversed(_RADIX):
            number, place = divmod(number, base)
            places.append(place)
        return cls(*reversed(places))

    @property
    def number(self) -> int:
        """The one that :meth:`of` takes."""
        number = 0
        for base, place in zip(_RADIX, self, strict=True):
            number = number * base + place
        return number

    @property
    def label(self) -> int:
        """The place in :func:`class_names`: what is shown, wherever, however large and however often."""
        return self.colour * len(SHAPES) + self.shape

    def caption(self, variant: int = 0) -> str:
        """The caption in one of its ``VARIANTS`` wordings; every one of them determines the combination.

        Variant 0 is the canonical one, such as "two small red circles at the top left".
        """
        if not 0 <= variant < VARIANTS:
            raise ValueError(f"variant must be from 0 to {VARIANTS - 1}, got {variant!r}")
        words, frame = divmod(variant, len(_FRAMES))
        size = _SIZES[self.size][words & 1]
        place = _POSITIONS[self.position][words >> 1 & 1]
        count = _COUNTS[self.quantity][words >> 2 & 1]
        shape = _SHAPES[self.shape][words >> 3 & 1]
        things = f"{count} {size} {COLOURS[self.colour]} {_plural(shape) if self.quantity else shape}"
        be = "are" if self.quantity and not count.startswith("a ") else "is"  # a pair is one thing
        return _FRAMES[frame].format(things=things, place=place, be=be)

    @classmethod
    def parse(cls, caption: str) -> Combination:
        """The combination that a caption of any wording tells.

        Raises:
            ValueError: some attribute is not told.
        """
        found = {}
        for name, pattern in _PATTERNS.items():
            match = pattern.search(caption)
            if match is None:
                raise ValueError(f"caption must tell {', '.join(_PATTERNS)}, got {caption!r}, without a {name}")
            found[name] = _PLACES[name][match[0]]
        return cls(**found)


def class_names() -> list[str]:
    """What the labels stand for: "red circle" and so on, each colour with each shape."""
    return [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]


def class_templates() -> list[str]:
    """Captions around a class name, one for each size and position, as :class:`~lit_ssl.callbacks.ZeroShot` takes."""
    return [f"one {size[0]} {{}} {place[0]}" for size, place in product(_SIZES, _POSITIONS)]


_PLACES: dict[str, dict[str, int]] = {
    "shape": {form: i for i, ways in enumerate(_SHAPES) for way in ways for form in (way, _plural(way))},
    "colour": {way: i for i, way in enumerate(COLOURS)},
    "size": {way: i for i, ways in enumerate(_SIZES) for way in ways},
    "position": {way: i for i, ways in enumerate(_POSITIONS) for way in ways},
    "quantity": {way: i for i, ways in enumerate(_COUNTS) for way in ways},
}
_PATTERNS = {  # longest first: "at the top left" before "at the top"
    name: re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, ways), key=len, reverse=True)) + r")\b")
    for name, ways in _PLACES.items()
}
