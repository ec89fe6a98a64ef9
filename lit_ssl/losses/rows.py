"""What losses over rows of two matrices share: their shapes, the sphere, hard negatives and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_sum_negatives", "log_sum_products", "pair", "sum_rows", "unit"]


def pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors, of one shape (B, D); raises ValueError otherwise."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must both be (B, D) of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a, b


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def sum_rows(
    fn: Callable[..., Tensor], *rows: Tensor, shared: Sequence[Tensor] = (), chunk_size: int | None = None
) -> Tensor:
    """The sum of ``fn(*rows, *shared)`` over its rows: at once, or block by block of ``chunk_size`` rows.

    Block by block, a block's gradient is taken right behind its value, while what both need is at hand: memory for one
    block, and no more work than at once. ``shared`` names every tensor besides ``rows`` that gradients flow into.
    """
    if chunk_size is None or len(rows[0]) <= chunk_size:
        return fn(*rows, *shared).sum()
    tensors = (*rows, *shared) if torch.is_grad_enabled() else (x.detach() for x in (*rows, *shared))
    return _SumOfBlocks.apply(fn, chunk_size, len(rows), *tensors)


class _SumOfBlocks(torch.autograd.Function):
    """The sum over rows is linear in its blocks, so that their gradients are known before the sum's own is."""

    @staticmethod
    def forward(ctx: Any, fn: Callable[..., Tensor], chunk_size: int, count: int, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        rows, shared = tensors[:count], tensors[count:]
        grads = [torch.zeros_like(x) if want else None for x, want in zip(tensors, wanted, strict=True)]
        # All that outlives a block is made before the first: a scalar put where a block's memory was keeps the next
        # block from going there, and the heap would grow by a block each time.
        sums = rows[0].new_empty(-(-len(rows[0]) // chunk_size))
        start = 0
        for number, part in enumerate(zip(*(x.split(chunk_size) for x in rows), strict=True)):
            inputs = [x.detach().requires_grad_(want) for x, want in zip((*part, *shared), wanted, strict=True)]
            with torch.enable_grad():
                value = fn(*inputs).sum()
            learned = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad(value, learned, materialize_grads=True) if learned else ())
            end = start + len(part[0])
            for place, grad in enumerate(grads):
                if grad is not None:
                    (grad[start:end] if place < count else grad).add_(next(found))
            sums[number] = value.detach()
            start = end
        ctx.fn, ctx.count = fn, count
        ctx.save_for_backward(*tensors, *grads)
        return sums.sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        half = len(ctx.saved_tensors) // 2
        tensors, grads = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        if torch.is_grad_enabled():  # somebody differentiates this once more: all blocks at once, with their graph
            apart = [x.view_as(x) for x in tensors]  # one may have been computed from another
            learned = [x for x, grad in zip(apart, grads, strict=True) if grad is not None]
            value = ctx.fn(*apart).sum()
            found = iter(torch.autograd.grad(value, learned, create_graph=True, materialize_grads=True))
            grads = [None if grad is None else next(found) for grad in grads]
        return (None, None, None, *(None if grad is None else grad * outer[0] for grad in grads))


def log_sum_negatives(logits: Tensor, negatives: int | Tensor, beta: float) -> Tensor:
    """log sum_j w_j e^l_j for each row, with w_j = e^(beta l_j) / mean_k e^(beta l_k): (R,).

    Hard negatives count for more (Robinson et al. 2021, arXiv:2010.04592); ``beta`` 0 weighs all alike.

    Args:
        logits: (R, M), -inf where a column is no negative of the row.
        negatives: how many columns are, for all rows or (R,), at least 1.
        beta: concentration, at least 0.
    """
    if not beta:
        return torch.logsumexp(logits, 1)
    count = negatives.log() if isinstance(negatives, Tensor) else math.log(negatives)
    return torch.logsumexp((1 + beta) * logits, 1) - torch.logsumexp(beta * logits, 1) + count


def log_sum_products(query: Tensor, candidates: Tensor, excluded: Tensor | None = None) -> Tensor:
    """log sum_j e^(q . c_j) for each row q, all candidates or those that are not excluded: (R,).

    One matrix of R x M is held, where the plain operations hold four; they are made again for a second derivative.

    Args:
        query: (R, D).
        candidates: (M, D).
        excluded: int64 (R, k), the candidates that a row leaves out; at least one has to remain.
    """
    return _LogSumProducts.apply(query, candidates, excluded)


class _LogSumProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, candidates: Tensor, excluded: Tensor | None) -> Tensor:
        logits = query @ candidates.T
        if excluded is not None:
            logits.scatter_(1, excluded, -torch.inf)
        most = logits.amax(1, keepdim=True)
        weights = logits.sub_(most).exp_()
        total = weights.sum(1)
        ctx.save_for_backward(query, candidates, excluded, weights, total)
        return most.squeeze(1) + total.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        query, candidates, excluded, weights, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates this once more: what was saved has no graph
            logits = query @ candidates.T
            logits = logits if excluded is None else logits.scatter(1, excluded, -torch.inf)
            shares = logits.softmax(1) * grads[0].unsqueeze(1)
            return shares @ candidates, shares.T @ query, None
        scale = (grads[0] / total).unsqueeze(1)  # applied to what is (R, D), not to the weights, (R, M)
        to_query = weights @ candidates * scale if ctx.needs_input_grad[0] else None
        to_candidates = weights.T @ (query * scale) if ctx.needs_input_grad[1] else None
        return to_query, to_candidates, None
