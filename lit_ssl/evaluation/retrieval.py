"""Image-text retrieval: from an image to its caption and back, beside what chance gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl.checks import check_integer

from .checks import check_features

__all__ = ["Retrieval", "format_retrieval", "retrieval"]

_SIMILARITIES = 1 << 22  # held at a time: 16 MiB in float32
_EQUAL = 1e-6  # similarities closer than this are a tie: a few roundings of float32


@dataclass(frozen=True)
class Retrieval:
    """How well images find their captions among those of a gallery, and captions their images.

    Attributes:
        rows: size of the gallery.
        i2t: recall at k from image to text, from 0 to 1, by k: how often a hit is among the k most similar captions.
        t2i: the same from text to image.
        i2t_median_rank, t2i_median_rank: of the first hit; 1 is best.
        chance: recall at k of an order drawn at random, by k; the same both ways.
        chance_median_rank: the median over queries of the first hit's expected rank in such an order.
    """

    rows: int
    i2t: dict[int, float]
    t2i: dict[int, float]
    i2t_median_rank: float
    t2i_median_rank: float
    chance: dict[int, float]
    chance_median_rank: float


def retrieval(image: Tensor, text: Tensor, *, ks: Sequence[int] = (1, 5), groups: Tensor | None = None) -> Retrieval:
    """Ranks each image's gallery of captions by cosine similarity, and each caption's gallery of images.

    Row i of both belongs together. Where rows share a caption, each of them is a hit of the others. Similarities within
    1e-6 of the best hit's count as ties, taken in random order: recalls and ranks are their exact expectations over
    that order. An encoder that maps all to one point thus scores chance, not 1.

    Args:
        image: floating-point (N, E), of any length.
        text: floating-point (N, E).
        ks: the k of recall at k, each at least 1.
        groups: integers (N,), equal where rows have the same caption; None takes all captions as different.

    Returns:
        Recalls, median ranks and chance. Memory is bounded whatever N is.

    Raises:
        ValueError: shapes or dtypes other than these, features that are not finite, or a k that is no integer of at
            least 1.
    """
    check_features("image", image)
    check_features("text", text)
    if image.shape != text.shape:
        raise ValueError(f"image and text must have the same shape, got {tuple(image.shape)} and {tuple(text.shape)}")
    for k in ks:
        check_integer("ks", k)
    rows = len(image)
    if groups is None:
        groups = torch.arange(rows)
    elif groups.shape != (rows,) or groups.is_floating_point() or groups.dtype == torch.bool:
        raise ValueError(
            f"groups must be an integer tensor of shape ({rows},), got {groups.dtype} {tuple(groups.shape)}"
        )
    groups = groups.to(image.device)
    image, text = (normalize(x.float(), dim=1) for x in (image, text.to(image.device)))

    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    hits = sizes[group].double().cpu()
    random = _First(torch.zeros_like(hits), rows - hits, hits)
    i2t, t2i = _first_hits(image, text, groups), _first_hits(text, image, groups)
    return Retrieval(
        rows=rows,
        i2t={k: i2t.recall(k) for k in ks},
        t2i={k: t2i.recall(k) for k in ks},
        i2t_median_rank=i2t.median_rank(),
        t2i_median_rank=t2i.median_rank(),
        chance={k: random.recall(k) for k in ks},
        chance_median_rank=random.median_rank(),
    )


@dataclass(frozen=True)
class _First:
    """Where each query's first hit stands: behind ``above`` others, level with ``tied`` others and ``hits`` hits.

    All are (N,) float64 on the host.
    """

    above: Tensor
    tied: Tensor
    hits: Tensor

    def recall(self, k: int) -> float:
        """The mean probability that a hit is among the first k, ties being in random order."""
        missed = torch.ones_like(self.above)
        for place in range(k):
            # Place `place` goes to one of those above, or else to a tied other, by drawing without replacement.
            drawn = place - self.above
            share = (self.tied - drawn).clamp(min=0) / (self.tied + self.hits - drawn).clamp(min=1)
            missed *= torch.where(drawn < 0, 1.0, share)
        return float((1 - missed).mean())

    def median_rank(self) -> float:
        """The median over queries of the first hit's expected rank."""
        return float((1 + self.above + self.tied / (self.hits + 1)).quantile(0.5))


def _first_hits(query: Tensor, gallery: Tensor, groups: Tensor) -> _First:
    counts: list[Tensor] = []
    step = max(1, _SIMILARITIES // len(gallery))
    for rows, own in zip(query.split(step), groups.split(step), strict=True):
        similarity = rows @ gallery.mT
        hit = own[:, None] == groups
        best = similarity.where(hit, -torch.inf).amax(1, keepdim=True)
        above = (similarity > best + _EQUAL).sum(1)  # of these none is a hit
        reached = similarity >= best - _EQUAL
        hits = (reached & hit).sum(1)
        counts.append(torch.stack([above, reached.sum(1) - above - hits, hits]))
    return _First(*torch.cat(counts, 1).cpu().double())


def format_retrieval(scores: Retrieval) -> str:
    """A plain-text table: image to text, text to image, and chance, to six decimals."""
    ks = list(scores.chance)
    lines = [f"{'':16}" + "".join(f"{f'R@{k}':>10}" for k in ks) + f"{'median rank':>14}"]
    for name, recall, rank in (
        ("image to text", scores.i2t, scores.i2t_median_rank),
        ("text to image", scores.t2i, scores.t2i_median_rank),
        (f"chance of {scores.rows:,}", scores.chance, scores.chance_median_rank),
    ):
        lines.append(f"{name:16}" + "".join(f"{recall[k]:>10.6f}" for k in ks) + f"{rank:>14.1f}")
    return "\n".join(lines)
