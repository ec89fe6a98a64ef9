"""Projection and prediction heads: what a loss sees in place of the representation."""

from __future__ import annotations

from torch import Tensor, nn

from lit_ssl.checks import check_integer

__all__ = ["MLPHead"]


class MLPHead(nn.Sequential):
    """A multi-layer perceptron (B, in_features) -> (B, out) whose representation is thrown away after pretraining.

    Hidden layers are Linear, BatchNorm (if ``norm``), ReLU; the last one is Linear, then BatchNorm without affine
    parameters (if ``last_norm``). A Linear that feeds a BatchNorm has no bias: its gradient is exactly zero.

    The recipes:

    - SimCLR (Chen et al. 2020, arXiv:2002.05709, section 2.1): ``MLPHead(d, d, 128)``; in its authors' later code,
      whose last BatchNorm learns a scale, ``MLPHead(d, d, 128, layers=3, last_norm=True)``.
    - MoCo v2 (Chen et al. 2020, arXiv:2003.04297, section 3): ``MLPHead(d, d, 128, norm=False)``.
    - MoCo v3 (Chen et al. 2021, arXiv:2104.02057, section 5.1 and its code): projector
      ``MLPHead(d, 4096, 256, layers=3, last_norm=True)`` for a ViT, ``layers=2`` for a ResNet; predictor
      ``MLPHead(256, 4096, 256, last_norm=True)`` for a ViT, without ``last_norm`` and ``bias=False`` for a ResNet.

    Args:
        in_features: width of the input, 1 or more.
        hidden: width of every hidden layer, 1 or more.
        out: width of the output, 1 or more.
        layers: number of Linear layers, 1 or more; 1 is a linear map and has no hidden layer.
        norm: BatchNorm after each hidden Linear.
        last_norm: BatchNorm without affine parameters after the last Linear.
        bias: whether a Linear that feeds no BatchNorm has a bias.

    Raises:
        ValueError: a width or number of layers that is not an integer of at least 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out: int,
        layers: int = 2,
        norm: bool = True,
        last_norm: bool = False,
        bias: bool = True,
    ) -> None:
        for name, value in (("in_features", in_features), ("hidden", hidden), ("out", out), ("layers", layers)):
            check_integer(name, value)
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts.append(nn.Linear(in_features, hidden, bias=bias and not norm))
            if norm:
                parts.append(nn.BatchNorm1d(hidden))
            parts.append(nn.ReLU(inplace=True))
            in_features = hidden
        parts.append(nn.Linear(in_features, out, bias=bias and not last_norm))
        if last_norm:
            parts.append(nn.BatchNorm1d(out, affine=False))
        super().__init__(*parts)
        self.out_features = out

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)
