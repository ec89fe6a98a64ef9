"""BatchNorm over the global batch on any backend, so that N processes train like one."""

from __future__ import annotations

import warnings

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_ssl.distributed import all_reduce_sum, world_size

__all__ = ["synchronize_batchnorm"]


def _global_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Normalise (B, C, ...) by the mean and variance of all ranks' rows and update the running statistics."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    with torch.autocast(x.device.type, enabled=False):
        # Two passes: E[x^2] - E[x]^2 cancels in float32. The count rides along, ranks may hold unequal rows.
        rows = wide.new_full((1,), x.numel() / max(x.shape[1], 1))
        total = all_reduce_sum(torch.cat([wide.sum(dims), rows]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        var = all_reduce_sum(centred.square().sum(dims)) / count
        scale = torch.rsqrt(var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        out = centred * scale.view(shape)
        if norm.bias is not None:
            out = out + norm.bias.view(shape)
        _update_running(norm, mean.detach(), var.detach(), count)
    return out.to(x.dtype)


@torch.no_grad()
def _update_running(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    unbiased = var * (count / (count - 1).clamp(min=1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        new = new.to(running.dtype)
        if norm.momentum is None:  # the cumulative average; a tensor, so that the host does not wait for it
            running.lerp_(new, norm.num_batches_tracked.to(running.dtype).reciprocal())
        else:
            running.lerp_(new, norm.momentum)


class _Synchronized(_BatchNorm):
    """Before a BatchNorm class in the inheritance: takes over only in training with more than one process."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        return _global_batch_norm(self, input)


class SynchronizedBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    """BatchNorm1d over the rows of all ranks."""


class SynchronizedBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    """BatchNorm2d over the rows of all ranks."""


class SynchronizedBatchNorm3d(_Synchronized, nn.BatchNorm3d):
    """BatchNorm3d over the rows of all ranks."""


class SynchronizedBatchNormAct2d(_Synchronized, BatchNormAct2d):
    """timm's BatchNorm with dropout and activation, over the rows of all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return BatchNormAct2d.forward(self, input)
        self._check_input_dim(input)
        return self.act(self.drop(_global_batch_norm(self, input)))


_TWINS: dict[type, type] = {
    nn.BatchNorm1d: SynchronizedBatchNorm1d,
    nn.BatchNorm2d: SynchronizedBatchNorm2d,
    nn.BatchNorm3d: SynchronizedBatchNorm3d,
    BatchNormAct2d: SynchronizedBatchNormAct2d,
}


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Make every BatchNorm in ``module`` use the statistics of all ranks' rows while it trains, in place.

    Works on any backend, gloo on CPU included, where ``torch.nn.SyncBatchNorm`` refuses; and asks the host for nothing,
    where that one waits for the GPU in each forward pass. Statistics are taken in two passes in float32 (float64 for
    float64 input), gradients flow through them across ranks, ranks may hold unequal numbers of rows, and the running
    statistics are those of the global batch with the unbiased variance. In a single process, and in eval mode, the
    original class's own code runs, bit for bit. Parameters, buffers, hooks and names of the state dict stay as they
    are. Calling it again changes nothing.

    Args:
        module: anything; a BatchNorm itself, too.

    Returns:
        ``module``.
    """
    unknown = set()
    for child in module.modules():
        twin = _TWINS.get(type(child))
        if twin is not None:
            child.__class__ = twin
        elif isinstance(child, _BatchNorm) and not isinstance(child, (_Synchronized, nn.SyncBatchNorm)):
            unknown.add(type(child).__qualname__)
    if unknown:
        warnings.warn(
            f"these BatchNorm classes are not known here and stay per-process: {', '.join(sorted(unknown))}; training "
            "on several devices will differ from training on one",
            stacklevel=2,
        )
    return module
