"""The weighted k-nearest-neighbour classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl.checks import check_integer

from .checks import labelled

__all__ = ["check_knn", "knn", "knn_predict"]

_SIMILARITIES = 1 << 24  # held at a time: 64 MiB in float32


def check_knn(k: int, temperature: float) -> None:
    """Raises ValueError for a k below 1 or a temperature that is not positive."""
    check_integer("k", k)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")


def knn_predict(
    bank_x: Tensor, bank_y: Tensor, x: Tensor, *, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class with most votes among the k nearest rows of the bank; a vote weighs exp(cosine / temperature).

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4, whose temperature is 0.07 (and k 200, on ImageNet).

    Args:
        bank_x: floating-point (N, D).
        bank_y: int64 (N,), each in [0, classes).
        x: floating-point (M, D); memory is bounded whatever M is.
        classes: their number.
        k: neighbours; a bank that holds fewer gives all.
        temperature: positive.

    Returns:
        classes int64 (M,).
    """
    check_knn(k, temperature)
    bank = normalize(bank_x.float(), dim=1).mT
    out = []
    for rows in x.split(max(1, _SIMILARITIES // len(bank_x))):
        similarity, nearest = (normalize(rows.float(), dim=1) @ bank).topk(min(k, len(bank_x)), dim=1)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, bank_y[nearest], weight)
        out.append(votes.argmax(1))
    return torch.cat(out)


def knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Held-out accuracy, from 0 to 1, of :func:`knn_predict` with the training rows as the bank.

    Args:
        train_x, test_x: floating-point (N, D) and (M, D).
        train_y, test_y: integers (N,) and (M,); rows with -1 are left out.
        k, temperature: as in :func:`knn_predict`.

    Raises:
        ValueError: shapes, dtypes or values out of range, or no labelled row.
    """
    train_x, train_y = labelled("train", train_x, train_y)
    test_x, test_y = labelled("test", test_x, test_y)
    test_x, test_y = test_x.to(train_x.device), test_y.to(train_x.device)
    classes = int(train_y.max()) + 1
    predicted = knn_predict(train_x, train_y, test_x, classes=classes, k=k, temperature=temperature)
    return float((predicted == test_y).double().mean())
