"""Linear probes: logistic regression whose strength is chosen inside the training labels, on all of them or on few."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_ssl.checks import check_integer

from .checks import labelled
from .logistic import Axes, Problems

__all__ = ["few_labels", "linear_probe", "logistic_regression"]

# Prior precisions (1 / C in scikit-learn's terms), strong to weak, half a decade apart.
STRENGTHS = tuple(10.0 ** (e / 2) for e in range(10, -5, -1))
_TOLERANCE = 1e-4
_SINGLE_FROM = 1 << 22  # feature matrices of more entries are multiplied in float32
_SEARCH_ROWS = 20_000  # a precision is a property of the features, not of how many rows tell it
_FOLDS_UP_TO = 2000  # rows; with more, one held-out fifth tells strengths apart


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products as written: no autocast, no TF32 or bf16 shortcuts that would stall convergence."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _device(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # float64 is missing there


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of each column of (n, D), float64; 0 for the latter if it is constant."""
    pieces = x.split(max(1, (1 << 23) // x.shape[1]))  # no float64 copy of the whole
    mean = torch.stack([piece.double().sum(0) for piece in pieces]).sum(0) / len(x)
    square = torch.stack([(piece.double() - mean).square().sum(0) for piece in pieces]).sum(0)
    std = (square / len(x)).sqrt()
    constant = std <= 1e-7 * mean.abs().clamp_min(torch.finfo(torch.float32).tiny)
    return mean, torch.where(constant, 0.0, 1 / std)


def _standardise(x: Tensor, mean: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    pieces = x.split(max(1, (1 << 23) // x.shape[1]))
    return torch.cat([((piece.double() - mean) * scale).to(dtype) for piece in pieces])


def _permutation(n: int, seed: int, device: torch.device) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)


def _fifths(y: Tensor, seed: int) -> Tensor:
    """Deals the rows of each class out to five folds in turn, in an order that the seed chooses: int64 (G, n)."""
    n = y.shape[1]
    by_class = (y * n + _permutation(n, seed, y.device)).argsort(dim=1)
    dealt = torch.arange(n, device=y.device).expand_as(y) % 5
    return torch.empty_like(y).scatter_(1, by_class, dealt)


def _search(axes: Axes, y: Tensor, classes: int, folds: int, seed: int) -> tuple[Tensor, Tensor]:
    """The strength (G,) with the highest log likelihood of held-out rows, and weights (G, d, K) to start a refit from.

    Walks from strong to weak, each fit starting from the one before, until one brings no group anything.

    Args:
        folds: 5 holds each fifth out once, 1 only the first.
    """
    z = axes.z
    if y.shape[1] > (most := max(_SEARCH_ROWS, 100 * classes)):
        sample = _permutation(y.shape[1], seed, y.device)[:most]
        z, y = z[:, sample], y[:, sample]
    held = _fifths(y, seed)[:, :, None] == torch.arange(folds, device=y.device)
    rows = (~held).sum(1).double()
    problems = Problems(z, y, classes, (~held).double() / rows[:, None], axes.curvature)
    best = torch.full((len(y),), -math.inf, dtype=torch.float64, device=y.device)
    strength, start, w = best.clone(), None, None
    for candidate in STRENGTHS:
        w, logits = problems.solve(candidate / rows, w, tolerance=1e-3)
        score = _score(logits, y, held)
        better = score > best
        strength = torch.where(better, candidate, strength)
        start = w.mean(2) if start is None else torch.where(better[:, None, None], w.mean(2), start)
        best = torch.where(better, score, best)
        if not bool(better.any()):
            break
    assert start is not None
    return strength, start


def _score(logits: Tensor, y: Tensor, held: Tensor) -> Tensor:
    right = logits.log_softmax(3).gather(3, y[:, :, None, None].expand(-1, -1, logits.shape[2], 1)).squeeze(3)
    return (right * held).sum((1, 2)) / held.sum((1, 2))


def _fit(
    x: Tensor, y: Tensor, classes: int, strength: float | None, tolerance: float, seed: int
) -> tuple[Tensor, Tensor]:
    """G standardised problems (G, n, D), (G, n) -> weights (G, D, K), bias (G, K); strength by search if not given."""
    axes, n, start = Axes(x), x.shape[1], None
    if strength is None:
        chosen, start = _search(axes, y, classes, 5 if n <= _FOLDS_UP_TO else 1, seed)
    else:
        chosen = torch.full((len(x),), strength, dtype=torch.float64, device=x.device)
    weight = torch.full((len(x), n, 1), 1 / n, dtype=torch.float64, device=x.device)
    problems = Problems(axes.z, y, classes, weight, axes.curvature)
    w, _ = problems.solve(chosen[:, None] / n, None if start is None else start[:, :, None], tolerance=tolerance)
    return axes.coefficients(w[:, :, 0])


def _dtype(entries: int) -> torch.dtype:
    return torch.float32 if entries >= _SINGLE_FROM else torch.float64


def logistic_regression(
    x: Tensor, y: Tensor, *, strength: float | None = None, tolerance: float = _TOLERANCE, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """L2 multinomial logistic regression on standardised features, to convergence.

    Args:
        x: floating-point (N, D), not standardised; constant features are ignored.
        y: integers (N,); rows with -1 are left out.
        strength: precision of the Gaussian prior on the weights of the standardised features, which is
            scikit-learn's ``1 / C``. By default the best by log likelihood of a held-out fifth of these rows (of each
            fifth in turn up to 2,000 rows), going from 1e5 down to 1e-2 by half decades until it falls; then all rows
            are fitted. Of more than 20,000 rows (or 100 a class) so many, drawn by seed, take part in the choice.
        tolerance: norm of the gradient, in the scaled coordinates of this module, at which the fit ends.
        seed: chooses the fifths.

    Returns:
        classes (K,) int64 sorted, weight (D, K) and bias (K,) float64: ``x.double() @ weight + bias`` are the logits.

    Raises:
        ValueError: shapes, dtypes or values out of range.
    """
    if strength is not None and not 0 < strength < math.inf:
        raise ValueError(f"strength must be a positive number or None, got {strength!r}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
    x, y = labelled("train", x, y)
    device = _device(x)
    x, y = x.to(device), y.to(device)
    with _full_precision(device):
        classes, y = y.unique(return_inverse=True)
        mean, scale = _statistics(x)
        z = _standardise(x, mean, scale, _dtype(x.numel()))
        weight, bias = _fit(z[None], y[None], len(classes), strength, tolerance, seed)
        weight = weight[0] * scale[:, None]
        return classes, weight, bias[0] - mean @ weight


def _accuracy(x: Tensor, y: Tensor, classes: Tensor, weight: Tensor, bias: Tensor) -> list[float]:
    """Share of rows (N, D) classified right by each of G solutions (G, D, K), (G, K)."""
    right = torch.zeros(len(weight), dtype=torch.float64, device=x.device)
    for rows, labels in zip(x.split(1 << 12), y.split(1 << 12), strict=True):
        logits = rows.double() @ weight + bias[:, None]
        right += (classes[logits.argmax(2)] == labels).sum(1)
    return (right / len(x)).tolist()


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int = 0) -> float:
    """Held-out accuracy of :func:`logistic_regression`, its strength chosen inside the training labels.

    Args:
        train_x, test_x: floating-point (N, D) and (M, D), not standardised.
        train_y, test_y: integers (N,) and (M,); rows with -1 are left out. The held-out ones are read once.
        seed: chooses the fifth of the training rows on which strengths are compared.

    Returns:
        accuracy from 0 to 1.

    Raises:
        ValueError: shapes, dtypes or values out of range, or no labelled row.
    """
    test_x, test_y = labelled("test", test_x, test_y)
    device = _device(train_x)
    classes, weight, bias = logistic_regression(train_x, train_y, seed=seed)
    with _full_precision(device):
        return _accuracy(test_x.to(device), test_y.to(device), classes, weight[None], bias[None])[0]


def few_labels(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    per_class: int = 10,
    draws: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """Held-out accuracy of logistic regression on few labels a class: mean and standard error over draws.

    Features are standardised by the statistics of all training features, which need no label; the strength is chosen
    in each draw by five-fold cross-validation inside its labels.

    Args:
        train_x, test_x: floating-point (N, D) and (M, D).
        train_y, test_y: integers (N,) and (M,); rows with -1 are left out.
        per_class: labels a class; a class that has fewer gives all it has.
        draws: how many times labels are drawn, without replacement within a draw; at least 2.
        seed: chooses the draws.

    Returns:
        mean accuracy from 0 to 1, and its standard error over the draws.

    Raises:
        ValueError: shapes, dtypes or values out of range, or no labelled row.
    """
    check_integer("per_class", per_class)
    check_integer("draws", draws, 2)
    train_x, train_y = labelled("train", train_x, train_y)
    test_x, test_y = labelled("test", test_x, test_y)
    device = _device(train_x)
    train_x, train_y, test_x, test_y = (t.to(device) for t in (train_x, train_y, test_x, test_y))
    with _full_precision(device):
        classes, train_y = train_y.unique(return_inverse=True)
        mean, scale = _statistics(train_x)
        rows = torch.stack([_draw(train_y, per_class, seed * draws + i) for i in range(draws)])
        scores: list[float] = []
        together = max(1, (1 << 25) // (rows.shape[1] * train_x.shape[1]))
        for chosen in rows.split(together):
            dtype = _dtype(chosen.shape[1] * train_x.shape[1])
            z = torch.stack([_standardise(train_x[r], mean, scale, dtype) for r in chosen])
            weight, bias = _fit(z, train_y[chosen], len(classes), None, _TOLERANCE, seed)
            weight = weight * scale[:, None]
            scores += _accuracy(test_x, test_y, classes, weight, bias - mean @ weight)
    accuracy = torch.tensor(scores, dtype=torch.float64)
    return float(accuracy.mean()), float(accuracy.std() / math.sqrt(draws))


def _draw(y: Tensor, per_class: int, seed: int) -> Tensor:
    """``per_class`` rows of each class, drawn without replacement: int64 row numbers."""
    n = len(y)
    order = (y * n + _permutation(n, seed, y.device)).argsort()
    first = torch.searchsorted(y[order].contiguous(), y[order].contiguous())  # where the row's class begins
    return order[torch.arange(n, device=y.device) - first < per_class]
