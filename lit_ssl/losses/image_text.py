"""Losses between images and their captions: CLIP's softmax and SigLIP's sigmoid, with duplicate captions left out.

As in :mod:`lit_ssl.losses.contrastive`, each rank returns the sum over its own rows, times the world size, over the
number of rows in the global batch, so that DDP's mean over ranks is the exact global loss, gradients of scale and bias
included, even when ranks hold unequal numbers of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.distributed import gather, rank, row_counts, world_size

from .rows import log_sum_negatives, pair, sum_rows, unit

__all__ = ["clip_loss", "siglip_loss"]


def clip_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float,
    duplicates: Tensor | None = None,
    beta: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """Symmetric cross entropy over the pairs of the global batch (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Row i of ``image`` and row i of ``text`` belong together. Each image is told from the other captions and each
    caption from the other images; the two losses are averaged.

    Args:
        image, text: (B, D) embeddings of this rank, of any floating dtype; normalised here; computed in float32 or
            wider.
        logit_scale: what the cosine similarity is multiplied by: positive, already exponentiated.
        duplicates: int64 (B,), a number for each caption, equal for equal captions: pairs of equal captions are left
            out of the negatives, across ranks too. None takes all captions to be different.
        beta: concentration of the negatives on hard ones (Robinson et al. 2021, arXiv:2010.04592; for images and
            captions Radenovic et al. 2023, arXiv:2301.02280); 0 weighs all alike.
        chunk_size: rows whose similarities are held at once, exact all the same; None holds all of them.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: shapes that differ or are not (B, D), or an argument outside its range.
    """
    check_positive("beta", beta, zero=True)
    _check(image, text, logit_scale, duplicates, chunk_size)
    with torch.autocast(image.device.type, enabled=False):
        image, text = unit(image), unit(text)
        counts = row_counts(len(image))
        n = sum(counts)
        images, texts = gather(torch.stack([image, text], 1), counts).unbind(1)
        ids, all_ids = _caption_ids(duplicates, counts, image.device)
        scale = _scalar(logit_scale, image)
        positive = scale * (image * text).sum(-1)

        def direction(query: Tensor, candidates: Tensor) -> Tensor:
            def rows(query: Tensor, positive: Tensor, ids: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
                excluded = ids[:, None] == all_ids  # (R, n): the row's own partner and whatever equals it
                negatives = (~excluded).sum(1)
                alone = negatives == 0
                logits = (scale * query @ candidates.T).masked_fill(excluded, -torch.inf)
                logits = logits.masked_fill(alone[:, None], 0.0)  # a sum over nothing would have no gradient
                log_negatives = log_sum_negatives(logits, negatives.clamp(min=1).to(logits.dtype), beta)
                return torch.logaddexp(positive, log_negatives.masked_fill(alone, -torch.inf)) - positive

            return sum_rows(rows, query, positive, ids, shared=(candidates, scale), chunk_size=chunk_size)

        total = direction(image, texts) + direction(text, images)
        return total * (world_size() / max(2 * n, 1))


def siglip_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    duplicates: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Each pair of the global batch is a yes or no of its own (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    -(1 / n) sum_ij log sigmoid(y_ij (logit_scale cos(image_i, text_j) + logit_bias)), where y_ij is 1 for i = j and -1
    otherwise, and n is the number of pairs of the global batch.

    Args:
        image, text: (B, D) embeddings of this rank, of any floating dtype; normalised here; computed in float32 or
            wider.
        logit_scale: what the cosine similarity is multiplied by: positive, already exponentiated.
        logit_bias: added to each logit; the paper starts at -10.
        duplicates, chunk_size: as in :func:`clip_loss`.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: shapes that differ or are not (B, D), or an argument outside its range.
    """
    _check(image, text, logit_scale, duplicates, chunk_size)
    with torch.autocast(image.device.type, enabled=False):
        image, text = unit(image), unit(text)
        counts = row_counts(len(image))
        texts = gather(text, counts)  # this rank's images against all captions: together, all pairs once
        ids, all_ids = _caption_ids(duplicates, counts, image.device)
        scale, bias = _scalar(logit_scale, image), _scalar(logit_bias, image)

        def rows(image: Tensor, text: Tensor, ids: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            positive = scale * (image * text).sum(-1) + bias
            logits = scale * image @ texts.T + bias
            against = (-logits).masked_fill(ids[:, None] == all_ids, torch.inf)  # surely told apart: adds nothing
            return -F.logsigmoid(positive) - F.logsigmoid(against).sum(1)

        total = sum_rows(rows, image, text, ids, shared=(texts, scale, bias), chunk_size=chunk_size)
        return total * (world_size() / max(sum(counts), 1))


def _caption_ids(duplicates: Tensor | None, counts: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The captions' numbers, of this rank's rows and of all rows: each row its own number where none are given."""
    if duplicates is None:
        every = torch.arange(sum(counts), device=device)
        return every.split(counts)[rank()], every
    duplicates = duplicates.to(device, non_blocking=True)
    return duplicates, gather(duplicates, counts)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(())


def _check(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, duplicates: Tensor | None, chunk_size: int | None
) -> None:
    pair("image", image, "text", text)
    if not isinstance(logit_scale, Tensor):  # a tensor's value is left alone: asking a device for it would wait
        check_positive("logit_scale", logit_scale)
    if duplicates is not None and (duplicates.shape != image.shape[:1] or duplicates.dtype != torch.int64):
        raise ValueError(
            f"duplicates must be int64 of shape ({len(image)},), got {duplicates.dtype} of {tuple(duplicates.shape)}"
        )
    check_integer("chunk_size", chunk_size, optional=True)
