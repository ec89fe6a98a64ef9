"""Talking to other ranks with exact gradients. Nothing else in the package touches ``torch.distributed``, but for
:mod:`lit_ssl.sharding`, which shards parameters.

Every function is the identity (or its single-process meaning) where no process group exists.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_sum", "average_", "gather", "global_count", "largest", "rank", "row_counts", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    return dist.get_rank() if _active() else 0


_host_groups: dict[Any, Any] = {}


def _host_group() -> Any:
    """A gloo group for numbers the host needs at once, so that asking never waits for a GPU."""
    default = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return default
    if default not in _host_groups:
        _host_groups.clear()
        _host_groups[default] = dist.new_group(backend="gloo")
    return _host_groups[default]


def row_counts(rows: int) -> list[int]:
    """How many rows each rank holds. A collective call: every rank must make it."""
    if not _active():
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([rows]), group=_host_group())
    return [int(c) for c in counts]


def global_count(rows: int) -> int:
    """How many rows all ranks hold together. A collective call."""
    return sum(row_counts(rows))


def largest(value: int) -> int:
    """The largest of all ranks' numbers, for what all must decide alike. A collective call that only hosts make."""
    if not _active():
        return value
    number = torch.tensor([value])
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=_host_group())
    return int(number)


# torch 2.14 renamed it; a build without distributed has neither.
_gather_equal: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.start, ctx.rows = sum(counts[: rank()]), x.shape[0]
        if len(set(counts)) == 1:
            out = x.new_empty((sum(counts), *x.shape[1:]))
            _gather_equal(out, x.contiguous())
            return out
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = _AllReduceSum.apply(grads[0])  # each rank's loss depends on these rows, so their gradients add up
        return total[ctx.start : ctx.start + ctx.rows], None


def gather(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows of all ranks, in rank order: (B, ...) to (sum of B, ...), differentiable.

    The backward pass sums every rank's gradient and hands back the own rows. With DDP's mean over ranks this makes
    "each rank's share of the global mean, times the world size" the exact gradient of the global mean.

    Args:
        x: this rank's rows; ranks may hold unequal numbers of them.
        counts: what :func:`row_counts` gave, if it was asked already.
    """
    if not _active():
        return x
    return _Gather.apply(x, counts or row_counts(x.shape[0]))


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone().contiguous()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _AllReduceSum.apply(grads[0])  # which can be differentiated once more


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over ranks, differentiable (its backward sums over ranks too)."""
    return _AllReduceSum.apply(x) if _active() else x


@torch.no_grad()
def average_(x: Tensor) -> None:
    """Put the mean over ranks in the place of ``x``."""
    if _active():
        dist.all_reduce(x)
        x /= world_size()
