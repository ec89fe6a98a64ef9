"""Two encoders that need no library: a small convolutional net and a perceptron over flattened pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lit_ssl.checks import check_integer
from lit_ssl.spec import ImageSpec

__all__ = ["MLP", "ConvNet"]


def _conv(inputs: int, outputs: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(width, width), _conv(width, width, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class ConvNet(nn.Module):
    """A small convolutional net for images of about 28 to 64 pixels, made to train fast on a CPU.

    A 3x3 stem of ``width / 2`` channels at full resolution, then ``stages`` 3x3 convolutions of stride 2 and widths
    ``width``, 2 ``width``, 4 ``width``, ..., each followed by ``depth`` residual blocks of two 3x3 convolutions;
    BatchNorm and ReLU throughout; pooled over space. Maps (B, channels, H, W) to (B, num_features).

    Args:
        channels: input channels, 1 or more.
        width: channels of the first stage, an even number of at least 2.
        depth: residual blocks per stage, 0 or more.
        stages: halvings of the resolution, 1 or more.
        stem_stride: 1, or 2 to halve the resolution in the stem too (four times fewer operations for larger images).
        pool: ``"avg"``, ``"max"``, or ``"avgmax"`` for both side by side.
        grid: cells per side that are pooled separately and concatenated; 1 pools the whole image.

    Attributes:
        num_features: ``width * 2 ** (stages - 1) * grid ** 2``, twice that for ``"avgmax"``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        depth: int = 0,
        stages: int = 3,
        stem_stride: int = 1,
        pool: Literal["avg", "max", "avgmax"] = "avg",
        grid: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("stages", stages), ("grid", grid)):
            check_integer(name, value)
        check_integer("depth", depth, 0)
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}")
        if pool not in ("avg", "max", "avgmax"):
            raise ValueError(f"pool must be 'avg', 'max' or 'avgmax', got {pool!r}")
        self.stem = _conv(channels, width // 2, stem_stride)
        widths = [width // 2] + [width * 2**stage for stage in range(stages)]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_conv(inputs, outputs, 2), *(_Residual(outputs) for _ in range(depth)))
                for inputs, outputs in pairwise(widths)
            )
        )
        self.pool, self.grid = pool, grid
        self.num_features = widths[-1] * grid**2 * (2 if pool == "avgmax" else 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        pooled = []
        if self.pool != "max":
            pooled.append(_cell_means(x, self.grid).flatten(1))
        if self.pool != "avg":
            pooled.append(nn.functional.adaptive_max_pool2d(x, self.grid).flatten(1))
        return torch.cat(pooled, 1)


def _cell_means(x: Tensor, grid: int) -> Tensor:
    """``adaptive_avg_pool2d`` as a matrix product: (B, C, H, W) to (B, C, grid ** 2).

    A fifth of its time on a CPU, and deterministic on a GPU, where its gradient is not.
    """
    if grid == 1:
        return x.mean(dim=(2, 3))[:, :, None]
    down, across = (
        nn.functional.adaptive_avg_pool1d(torch.eye(side, dtype=x.dtype, device=x.device), grid) for side in x.shape[2:]
    )
    cells = torch.kron(down, across)
    if x.is_contiguous(memory_format=torch.channels_last):  # then this way round needs no copy, nor does its gradient
        return (cells.T @ x.permute(0, 2, 3, 1).flatten(1, 2)).transpose(1, 2)
    return x.flatten(2) @ cells


class MLP(nn.Module):
    """A perceptron over flattened pixels: (B, C, H, W) to (B, hidden[-1]).

    With the default, an image of 28x28 gray pixels goes through Linear layers of 784-256-64 with a ReLU between them;
    the code itself is linear.

    Args:
        spec: the images' shape, which fixes the input's width.
        hidden: width of each layer, at least one; the last is the representation's.
        norm: BatchNorm before each ReLU.

    Attributes:
        num_features: ``hidden[-1]``.

    Raises:
        ValueError: ``hidden`` is empty or holds anything but integers of at least 1.
    """

    def __init__(self, spec: ImageSpec, hidden: Sequence[int] = (256, 64), norm: bool = False) -> None:
        super().__init__()
        if isinstance(hidden, (int, str)) or not hidden:
            raise ValueError(f"hidden must be a sequence of at least one width, got {hidden!r}")
        for value in hidden:
            check_integer("hidden", value)
        widths = [spec.channels * math.prod((spec.height, spec.width)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            if i:
                layers += [nn.BatchNorm1d(inputs), nn.ReLU()] if norm else [nn.ReLU()]
            layers.append(nn.Linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
