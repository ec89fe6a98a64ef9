"""The heads of SimCLR, MoCo v2 and MoCo v3, layer by layer."""

import pytest
import torch
from torch import nn

from lit_ssl.networks import MLPHead


def layers(head):
    names = []
    for m in head:
        if isinstance(m, nn.Linear):
            names.append(f"{m.in_features}-{m.out_features}{'+b' if m.bias is not None else ''}")
        else:
            names.append(type(m).__name__ + ("" if getattr(m, "affine", True) else "!"))
    return " ".join(names)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "5-8 BatchNorm1d ReLU 8-3+b"),
        ({"norm": False}, "5-8+b ReLU 8-3+b"),
        ({"layers": 3, "last_norm": True}, "5-8 BatchNorm1d ReLU 8-8 BatchNorm1d ReLU 8-3 BatchNorm1d!"),
        ({"layers": 2, "bias": False}, "5-8 BatchNorm1d ReLU 8-3"),
        ({"layers": 1}, "5-3+b"),
    ],
)
def test_the_recipes(arguments, expected):
    head = MLPHead(5, 8, 3, **arguments)
    assert layers(head) == expected
    assert head(torch.randn(4, 5)).shape == (4, 3)


def test_widths_are_checked():
    for arguments in ((0, 8, 3), (5, 0, 3), (5, 8, 0), (5, 8, 3, 0), (5, 8.0, 3)):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            MLPHead(*arguments)
