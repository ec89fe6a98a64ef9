"""SIGReg: how far embeddings are from an isotropic Gaussian, seen along random directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.distributed import all_reduce_sum
from lit_ssl.random import normal, step_key

__all__ = ["check_sigreg", "sigreg"]


def check_sigreg(num_directions: int, knots: int, t_max: float) -> None:
    """Raises ValueError, which names the option, its value and what is allowed, unless all are in their range."""
    check_integer("num_directions", num_directions)
    check_integer("knots", knots, 2)
    check_positive("t_max", t_max)


class _PowerSums(torch.autograd.Function):
    """Sums over rows of e^(ikx) for x = ``z @ directions`` and k = 1 to ``powers``: real (V, N, D) and (D, M) to real
    (powers, V, M, 2), cosines and sines.

    One cosine and one sine a number instead of ``powers`` of each, and memory for one in place of all: the powers are
    multiplied up in the forward pass and again, by Horner's rule, in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, directions: Tensor, powers: int) -> Tensor:
        unit = _on_the_circle(z @ directions)
        ctx.save_for_backward(z, directions, unit)
        power, sums = unit, [unit.sum(1)]
        for _ in range(powers - 1):
            power = power * unit
            sums.append(power.sum(1))
        return torch.view_as_real(torch.stack(sums))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, directions, unit = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates this once more: what was saved has no graph
            unit = _on_the_circle(z @ directions)
        weights = torch.view_as_complex(grads[0].contiguous()).conj().unsqueeze(2)  # (powers, V, 1, M)
        total = torch.zeros_like(unit)
        for k in range(len(weights), 0, -1):
            total = (total + k * weights[k - 1]) * unit
        return -total.imag @ directions.T, None, None


def _on_the_circle(x: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(x), x)


def sigreg(
    z: Tensor, *, key: Tensor | None = None, num_directions: int = 1024, knots: int = 17, t_max: float = 3.0
) -> Tensor:
    """Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, arXiv:2511.08544, section 4.2).

    Along each of ``num_directions`` random unit vectors a, the test of Epps and Pulley (1983) compares the empirical
    characteristic function of N numbers a.z with the standard normal's:

        N sum_k w_k [(mean_n cos(t_k a.z_n) - phi_k)^2 + (mean_n sin(t_k a.z_n))^2],   phi_k = exp(-t_k^2 / 2)

    with ``knots`` equidistant t_k on [0, t_max] and w_k the trapezoidal rule's weight, doubled for the negative half,
    times phi_k. The result is the mean over directions and views. Gaussian samples give 1.0525 in expectation at any N
    (with the default knots), and all-zero ones .4020 N; what is not Gaussian grows with N.

    Args:
        z: (V, N, D) embeddings of this rank, V views of N images, or (N, D), one view; of any floating dtype, computed
            in float32 or wider; not normalised. Ranks may hold unequal N; means are over the rows of all ranks.
        key: int64 (1,) from :func:`lit_ssl.random.step_key`, on any device, which decides the directions: alike on all
            ranks, and new at each step (the paper's choice). Default: the key of seed 0 and step 0.
        num_directions: 1 or more. Default 1024 (the paper's recommendation; the authors' minimal example takes 256).
        knots: 2 or more. Default 17 (the paper's).
        t_max: positive. Default 3 (the authors' ``EppsPulley``; the paper's table 1a finds [-3, 3] and [-5, 5] alike).

    Returns:
        A scalar, at least float32: the value of the global batch, the same on every rank, so that DDP's mean over ranks
        is exact. 0 where no rank has a row.

    Raises:
        ValueError: ``z`` is not (V, N, D) or (N, D), ``key`` is not one key, or an option outside its range.
    """
    check_sigreg(num_directions, knots, t_max)
    if z.ndim not in (2, 3) or not z.is_floating_point():
        raise ValueError(f"z must be floating-point (V, N, D) or (N, D), got {z.dtype} {tuple(z.shape)}")
    key = step_key(0, 0) if key is None else key
    if key.shape != (1,):
        raise ValueError(f"key must be one key, of shape (1,), got {tuple(key.shape)}")
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    z = z if z.ndim == 3 else z[None]
    with torch.autocast(z.device.type, enabled=False):
        key = key.to(z.device, non_blocking=True)
        directions = normal(key, "sigreg/directions", (z.shape[2], num_directions))[0]
        directions = (directions / directions.norm(dim=0)).to(z.dtype)
        # The knot at 0 is left out: both characteristic functions are 1 there.
        step = t_max / (knots - 1)
        phi = torch.exp(-(torch.arange(1, knots, device=z.device, dtype=z.dtype) * step).square() / 2)
        weight = 2 * step * phi
        weight[-1] /= 2
        sums = _PowerSums.apply(z, directions * step, knots - 1)
        # The number of rows rides along, so that the host need not know it.
        total = all_reduce_sum(torch.cat([sums.flatten(), sums.new_full((1,), z.shape[1])]))
        rows = total[-1].detach()
        cos, sin = (total[:-1] / rows.clamp(min=1)).view(sums.shape).unbind(-1)  # (knots - 1, V, num_directions)
        error = (cos - phi.view(-1, 1, 1)).square() + sin.square()
        return rows * torch.einsum("k,kvm->vm", weight, error).mean()
