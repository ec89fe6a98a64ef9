"""Converged L2 multinomial logistic regression, many problems at once.

The minimised function of a problem with rows x_i, labels y_i and row weights a_i that sum to one is

    sum_i a_i * -log softmax(W x_i + b)[y_i]  +  penalty / 2 * |W|^2        (the bias b is not penalised)

Features are first standardised and rotated to their principal axes, where the curvature of the data term is bounded by
a known diagonal (Böhning 1992, the multinomial logistic bound). Scaled by that bound, L-BFGS takes ten to some
hundred steps on raw pixels. A step costs two matrix products whatever the line search does, because logits are linear
in the weights.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["Axes", "Problems"]

_MEMORY = 10  # pairs that L-BFGS remembers
_ROTATE_UP_TO = 4096  # an eigendecomposition beyond this costs more than it saves


class Axes:
    """Principal axes of G feature matrices (G, n, D), in which the L2-penalised solution is looked for.

    The solution lies in the row space, so this is exact, and small where n is.

    Attributes:
        z: the rows in these axes and a last column of ones, (G, n, d + 1).
        curvature: mean square of each column of ``z``, (G, d + 1) float64.
    """

    def __init__(self, x: Tensor) -> None:
        n, dim = x.shape[1:]
        self.basis: Tensor | None = None  # (G, D, d)
        values = x.new_ones(x.shape[0], dim, dtype=torch.float64)
        if min(n, dim) <= _ROTATE_UP_TO:
            gram = (x @ x.mT if dim > n else x.mT @ x).double() / n
            values, vectors = torch.linalg.eigh(gram)
            floor = values[:, -1:].clamp_min(1e-300) * (1e-12 if x.dtype == torch.float64 else 1e-9)
            real = values > floor  # the rest is rounding
            values, vectors = values * real, vectors * real[:, None]
            if dim > n:
                vectors = x.mT @ (vectors * torch.where(real, values * n, 1.0).rsqrt()[:, None]).to(x.dtype)
            self.basis = vectors.to(x.dtype)
            x = x @ self.basis
        self.z = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
        self.curvature = torch.cat([values, values.new_ones(values.shape[0], 1)], dim=1)

    def coefficients(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (G, d + 1, K) in these axes -> weights (G, D, K) and bias (G, K) for the features themselves."""
        weight, bias = w[:, :-1], w[:, -1]
        return (weight if self.basis is None else self.basis.double() @ weight), bias


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 3), keepdim=True)  # over features and classes: (G, 1, F, 1)


class Problems:
    """G groups of F problems: the problems of a group share features and labels and differ in row weights.

    Args:
        z: features (G, n, d), the last column all ones.
        y: labels (G, n) in [0, K).
        classes: K.
        weight: row weights (G, n, F) float64, summing to one over n.
        curvature: mean square of each column of ``z``, (G, d) float64.
    """

    def __init__(self, z: Tensor, y: Tensor, classes: int, weight: Tensor, curvature: Tensor) -> None:
        self.z, self.y, self.weight = z, y, weight
        self.shape = (z.shape[0], z.shape[2], weight.shape[2], classes)
        self.curvature = curvature[:, :, None, None]
        self.penalised = torch.ones_like(self.curvature)
        self.penalised[:, -1] = 0
        self._target = y[:, :, None, None].expand(-1, -1, weight.shape[2], 1)

    def logits(self, w: Tensor) -> Tensor:
        """(G, d, F, K) -> (G, n, F, K) float64."""
        flat = torch.bmm(self.z, w.flatten(2).to(self.z.dtype))
        return flat.unflatten(2, w.shape[2:]).double()

    def loss(self, logits: Tensor, w: Tensor, penalty: Tensor) -> Tensor:
        """(G, 1, F, 1)."""
        nll = logits.logsumexp(3) - logits.gather(3, self._target).squeeze(3)
        data = (nll * self.weight).sum(1)[:, None, :, None]
        return data + 0.5 * _inner(w * self.penalised * penalty, w)

    def gradient(self, logits: Tensor, w: Tensor, penalty: Tensor) -> Tensor:
        residual = (logits - logits.logsumexp(3, keepdim=True)).exp_()  # faster than softmax where classes are few
        residual.scatter_add_(3, self._target, -torch.ones_like(self._target, dtype=residual.dtype))
        residual *= self.weight[..., None]
        data = torch.bmm(residual.flatten(2).to(self.z.dtype).mT, self.z).mT  # on CPU faster than z.mT @ residual
        return data.double().unflatten(2, w.shape[2:]) + self.penalised * penalty * w

    def solve(
        self, penalty: Tensor, start: Tensor | None = None, *, tolerance: float, max_steps: int = 2000
    ) -> tuple[Tensor, Tensor]:
        """Minimises every problem.

        Args:
            penalty: (G, F) float64, positive.
            start: weights (G, d, F, K) to start from; zeros by default.
            tolerance: each problem stops when the norm of its gradient, scaled by the curvature bound, is below this.
            max_steps: a warning is given when some problem has not converged by then.

        Returns:
            weights (G, d, F, K) and logits (G, n, F, K), both float64.
        """
        penalty = penalty[:, None, :, None]
        scale = (0.5 * self.curvature + penalty * self.penalised).rsqrt()  # w = scale * v, and v is well conditioned
        v = torch.zeros(self.shape, dtype=torch.float64, device=self.z.device) if start is None else start / scale
        logits = self.logits(scale * v)
        loss = self.loss(logits, scale * v, penalty)
        grad = scale * self.gradient(logits, scale * v, penalty)
        history: list[tuple[Tensor, Tensor, Tensor]] = []
        running = _inner(grad, grad).sqrt() > tolerance
        for _ in range(max_steps):
            if not bool(running.any()):
                break
            direction = -_lbfgs(grad, history) * running
            slope = _inner(grad, direction)
            change = self.logits(scale * direction)
            step, new_loss = self._backtrack(logits, change, v, direction, scale, penalty, loss, slope, running)
            moved = step * direction
            v, logits = v + moved, logits.addcmul_(step, change)
            new_grad = scale * self.gradient(logits, scale * v, penalty)
            yielded = new_grad - grad
            curved = _inner(moved, yielded)
            history.append((moved, yielded, torch.where(curved > 1e-300, 1 / curved, 0.0)))
            del history[:-_MEMORY]
            grad, loss = new_grad, new_loss
            # a step of zero length means that rounding, not the problem, sets the floor
            running = running & (_inner(grad, grad).sqrt() > tolerance) & (step > 0)
        else:
            warnings.warn(f"logistic regression: a problem has not converged in {max_steps} steps", stacklevel=3)
        return scale * v, logits

    def _backtrack(
        self,
        logits: Tensor,
        change: Tensor,
        v: Tensor,
        direction: Tensor,
        scale: Tensor,
        penalty: Tensor,
        loss: Tensor,
        slope: Tensor,
        running: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Step lengths 1, 1/2, 1/4 … until each problem's loss has decreased enough (Armijo); 0 where none does."""
        step = running.to(torch.float64)
        slack = 1e-14 * loss.abs()
        for _ in range(30):
            new = self.loss(logits + step * change, scale * (v + step * direction), penalty)
            bad = (new > loss + 1e-4 * step * slope + slack) & (step > 0)
            if not bool(bad.any()):
                return step, new
            step = torch.where(bad, step * 0.5, step)
        step = torch.where(bad, 0.0, step)
        return step, torch.where(bad, loss, new)


def _lbfgs(grad: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian's estimate times the gradient (Nocedal 1980, two loops), for every problem."""
    q, alphas = grad, []
    for moved, yielded, rho in reversed(history):
        alphas.append(rho * _inner(moved, q))
        q = q - alphas[-1] * yielded
    if history:
        moved, yielded, _ = history[-1]
        square = _inner(yielded, yielded)
        q = q * torch.where(square > 0, _inner(moved, yielded) / square.clamp_min(1e-300), 1.0)
    for (moved, yielded, rho), alpha in zip(history, reversed(alphas), strict=True):
        q = q + (alpha - rho * _inner(yielded, q)) * moved
    return q
