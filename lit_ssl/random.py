"""Random numbers that are a pure function of what they belong to.

A draw is named: its value depends on a key and on the name of the draw, never on batch size, order, worker, rank,
device or on how many numbers were drawn before. Keys are int64; they come from :func:`sample_key` (seed, epoch, sample
index) or :func:`step_key` (seed, global step). All arithmetic is wrapping int64, which every torch device does alike.

Draws are made on the device that ``key`` lives on.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "bernoulli",
    "integers",
    "isolated",
    "normal",
    "permuted",
    "reseed",
    "resolve_seed",
    "sample_key",
    "step_key",
    "uniform",
]


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # int64's >> is arithmetic; the mask makes it logical


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of 64-bit integers that scatters every bit."""
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MIX1)  # in place: masks and noise draw a number for every pixel
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MIX2)
    return _shift(x, 31).bitwise_xor_(x)


@lru_cache(maxsize=4096)
def _word(name: str | int) -> int:
    if isinstance(name, int):
        name = f"int:{name}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def _fold(key: Tensor, word: int | Tensor) -> Tensor:
    return _mix((key ^ word) + _GAMMA)


def resolve_seed(seed: int | None) -> int:
    """``seed`` itself, or the one given to ``lightning.seed_everything`` (``--seed_everything``), or 0.

    Raises:
        ValueError: ``seed`` is not an integer in [0, 2**32), the range ``seed_everything`` accepts.
    """
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return seed


def sample_key(seed: int, epoch: int, index: Tensor) -> Tensor:
    """The key of each sample for one epoch: int64, shaped as ``index``. Validation uses epoch -1 throughout."""
    return _fold(index.to(torch.int64), _word(f"sample/{seed}/{epoch}"))


def step_key(seed: int, step: int, device: torch.device | str | None = None) -> Tensor:
    """The key of one optimizer step, shared by all samples and ranks: int64 (1,)."""
    return _fold(torch.tensor([step], device=device), _word(f"step/{seed}"))


def _bits(key: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    stream = _fold(key, _word(name)).reshape(-1, *(1 for _ in shape))
    counter = torch.arange(math.prod(shape), device=key.device).reshape(shape) if shape else 0
    return _mix(stream + counter * _GAMMA)


def uniform(key: Tensor, name: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1): float64 (B, *shape), the same bits on every device."""
    return _shift(_bits(key, name, shape), 11).to(torch.float64).mul_(2.0**-53)


def normal(key: Tensor, name: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers (Box-Muller): float64 (B, *shape)."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key, name + "/radius", shape)))
    return radius * torch.cos(2 * math.pi * uniform(key, name + "/angle", shape))


def bernoulli(key: Tensor, name: str, p: float, shape: tuple[int, ...] = ()) -> Tensor:
    """True with probability ``p``: bool (B, *shape)."""
    return uniform(key, name, shape) < p


def integers(key: Tensor, name: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform integers in [0, high): int64 (B, *shape)."""
    return (uniform(key, name, shape) * high).to(torch.int64).clamp_(max=high - 1)


def permuted(position: Tensor, n: int, seed: int, name: str | int) -> Tensor:
    """Where a keyed permutation of range(n) sends each position: int64, shaped as ``position``.

    A four-round Feistel network on the smallest even number of bits that holds ``n``, walked until it lands inside
    [0, n). It needs no memory beyond the positions asked for, so a loader of ten million samples starts at once.

    Args:
        position: int64, each in [0, n).
        n: length of the permutation, at least 1.
        seed, name: choose the permutation (a name or, for samplers, an epoch).
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    words = [_word(f"permutation/{seed}/{name}/{r}") for r in range(4)]

    def encrypt(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for word in words:
            left, right = right, left ^ (_fold(right, word) & mask)
        return (left << half) | right

    out = encrypt(position.to(torch.int64).flatten())
    outside = (out >= n).nonzero().flatten()
    while len(outside):  # few and fewer: only these walk on
        moved = encrypt(out[outside])
        out[outside] = moved
        outside = outside[moved >= n]
    return out.view(position.shape)


def reseed(seed: int, name: str) -> None:
    """Seed torch's global generators from (seed, name), for what draws from nothing else, such as dropout."""
    torch.manual_seed(_word(f"global/{seed}/{name}") & (2**63 - 1))


@contextmanager
def isolated(seed: int, name: str) -> Iterator[None]:
    """Inside, torch's global generator is seeded from (seed, name); outside, nothing has moved."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_word(f"isolated/{seed}/{name}") & (2**63 - 1))
        yield
