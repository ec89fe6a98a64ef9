"""All scores of one encoder, and the table that sets encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from .neighbours import knn
from .probes import few_labels, linear_probe

__all__ = ["Scores", "evaluate", "format_scores", "summary"]

_ROW_NAMES = {"raw_pixels": "raw pixels", "untrained": "untrained encoder", "trained": "this run"}


@dataclass(frozen=True)
class Scores:
    """Held-out accuracies, from 0 to 1.

    Attributes:
        knn: weighted k-nearest-neighbour classifier, k = 20, temperature 0.07.
        linear: linear probe with all training labels.
        ten_labels: linear probe with ten labels a class, mean over draws.
        ten_labels_se: standard error of that mean.
    """

    knn: float
    linear: float
    ten_labels: float
    ten_labels_se: float


def evaluate(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, draws: int = 10, seed: int = 0
) -> Scores:
    """Every accuracy of the table, from features alone: held-out labels choose nothing.

    Args:
        train_x, test_x: floating-point (N, D) and (M, D).
        train_y, test_y: integers (N,) and (M,); rows with -1 are left out.
        draws: of ten labels a class, at least 2.
        seed: of folds and draws.

    Raises:
        ValueError: shapes, dtypes or values out of range, or no labelled row.
    """
    data = (train_x, train_y, test_x, test_y)
    mean, error = few_labels(*data, per_class=10, draws=draws, seed=seed)
    return Scores(knn(*data), linear_probe(*data, seed=seed), mean, error)


def summary(scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Plain numbers, as ``summary.json`` holds them: ``{"raw_pixels": {"knn": …, "linear": …, …}, …}``."""
    return {name: asdict(row) for name, row in scores.items()}


def format_scores(scores: Mapping[str, Scores]) -> str:
    """A plain-text table, one row an encoder; the names ``raw_pixels``, ``untrained`` and ``trained`` are spelt out."""
    names = [_ROW_NAMES.get(name, name) for name in scores]
    width = max(map(len, names), default=0)
    lines = [f"{'':{width}}     kNN   linear probe   ten labels a class"]
    for name, row in zip(names, scores.values(), strict=True):
        few = f"{row.ten_labels:.3f} ± {row.ten_labels_se:.3f}"
        lines.append(f"{name:{width}}   {row.knn:.3f}   {row.linear:>12.3f}   {few:>18}")
    return "\n".join(lines)
