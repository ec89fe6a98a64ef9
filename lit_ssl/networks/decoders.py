"""From codes and tokens back to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_integer
from lit_ssl.spec import ImageSpec

from .masked import Encoded, is_vit, sincos_table, xavier_linears
from .patches import PatchGrid
from .small import MLP

__all__ = [
    "ConvDecoder",
    "DecoderKind",
    "MLPDecoder",
    "NoiseEmbedding",
    "PooledDecoder",
    "TokenDecoder",
    "build_patch_decoder",
    "decoder_options",
]

DecoderKind = Literal["conv", "mlp"]


class MLPDecoder(nn.Module):
    """A perceptron from codes (B, in_features) to images (B, channels, H, W), linear at the end.

    Args:
        in_features: length of a code.
        spec: size of the images, and their channels.
        hidden: width of each hidden layer, followed by a ReLU; may be empty.
        channels: of the output, in place of the spec's.

    Raises:
        ValueError: a width that is not an integer of at least 1.
    """

    def __init__(
        self, in_features: int, spec: ImageSpec, hidden: Sequence[int] = (256,), channels: int | None = None
    ) -> None:
        super().__init__()
        _check_hidden("hidden", hidden)
        self.shape = (channels or spec.channels, *spec.size)
        widths = [in_features, *hidden]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.shape[0] * self.shape[1] * self.shape[2]))

    def forward(self, code: Tensor) -> Tensor:
        return self.layers(code).unflatten(1, self.shape)


class ConvDecoder(nn.Module):
    """A convolutional decoder from codes (B, in_features) to images (B, channels, H, W), linear at the end.

    A Linear layer makes the coarsest map, of 4 to 8 pixels along the shorter side; then the size doubles (nearest
    neighbour, which leaves no checkerboard: Odena et al. 2016), each time followed by a 3x3 convolution, GroupNorm and
    ReLU; sizes that are no power of two times the first are met by rounding up. GroupNorm keeps images independent of
    their batch.

    Args:
        in_features: length of a code.
        spec: size of the images, and their channels.
        channels: of the output, in place of the spec's.
        width: channels at full resolution, a multiple of 8; doubled at each halving, up to 8 times as many.

    Raises:
        ValueError: ``width`` is no positive multiple of 8.
    """

    def __init__(self, in_features: int, spec: ImageSpec, channels: int | None = None, width: int = 32) -> None:
        super().__init__()
        _check_width("width", width)
        doublings = 0
        while min(spec.size) / 2**doublings >= 8:
            doublings += 1
        widths = [width * min(2**level, 8) for level in range(doublings, -1, -1)]
        self.sizes = [tuple(-(-side // 2**level) for side in spec.size) for level in range(doublings, -1, -1)]
        self.stem = nn.Linear(in_features, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.first = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.GroupNorm(8, b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.last = nn.Conv2d(widths[-1], channels or spec.channels, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        x = self.first(self.stem(code).unflatten(1, (-1, *self.sizes[0])))
        for size, stage in zip(self.sizes[1:], self.stages, strict=True):
            x = stage(F.interpolate(x, size=size, mode="nearest"))
        return self.last(x)


class TokenDecoder(nn.Module):
    """The masked autoencoder's decoder: visible and mask tokens, each in its place, through a narrow transformer.

    Source: He et al. 2021, arXiv:2111.06377, section 3; the defaults are theirs for ImageNet.

    Args:
        vit: whose tokens come in.
        grid: the patches that go out.
        dim: width, a multiple of 4 and of ``heads``.
        depth: blocks, 1 or more; through them alone a hidden patch learns of the visible ones.
        heads: of the attention.

    Attributes:
        dim: width of what ``condition`` adds to every token.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, vit: VisionTransformer, grid: PatchGrid, dim: int = 512, depth: int = 8, heads: int = 16
    ) -> None:
        super().__init__()
        decoder_options(dim=dim, depth=depth, heads=heads)
        self.prefix, self.dim = vit.num_prefix_tokens, dim
        self.embed = nn.Linear(vit.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_table(grid.rows, grid.columns, dim)[None], persistent=False)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # the paper's, whatever timm's default is
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(dim)
        self.predict = nn.Linear(dim, grid.values)
        xavier_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, keep: Tensor, condition: Tensor | None = None) -> Tensor:
        """All patches (M, L, values) from the tokens at ``keep`` (M, visible); ``condition`` is (M, dim)."""
        assert encoded.tokens is not None
        tokens = self.embed(encoded.tokens)
        prefix, visible = tokens.tensor_split([self.prefix], 1)
        positions: Tensor = self.positions  # type: ignore[assignment]
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), positions.shape[1], -1)
        place = keep.to(tokens.device, non_blocking=True).unsqueeze(-1).expand(-1, -1, self.dim)
        # Under autocast tokens are half precision and positions are not: the sum, which all blocks add to, is wide.
        x = torch.cat([prefix, hidden.scatter(1, place, visible) + positions], 1)
        if condition is not None:
            x = x + condition.to(x.dtype).unsqueeze(1)
        return self.predict(self.norm(self.blocks(x))[:, self.prefix :])


class PooledDecoder(nn.Module):
    """The decoder of a network without tokens: an image from the pooled features, cut into patches.

    Args:
        network: features (M, dim) to images (M, C, H, W).
        grid: the patches that go out.
        dim: length of the features, and of what ``condition`` adds to them.
    """

    def __init__(self, network: nn.Module, grid: PatchGrid, dim: int) -> None:
        super().__init__()
        self.network, self.grid, self.dim = network, grid, dim

    def forward(self, encoded: Encoded, keep: Tensor, condition: Tensor | None = None) -> Tensor:
        """As :meth:`TokenDecoder.forward`; ``keep`` is not looked at."""
        features = encoded.pooled if condition is None else encoded.pooled + condition
        return self.grid.patchify(self.network(features))


class NoiseEmbedding(nn.Module):
    """How much noise a view holds, from none (0) to most (1), as a decoder's ``condition``: levels (M,) to (M, dim).

    Sines and cosines of 1000 x the level at 64 frequencies, as of a diffusion model's time step (Ho et al. 2020,
    arXiv:2006.11239), then a perceptron of two layers. Of sigma itself, at most 0.05, they would all but stand still.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1000 * 10_000 ** -(torch.arange(64) / 64), persistent=False)
        self.layers = nn.Sequential(nn.Linear(128, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, level: Tensor) -> Tensor:
        angle = level.unsqueeze(1) * self.frequencies.to(level)
        return self.layers(torch.cat([angle.sin(), angle.cos()], 1).to(self.frequencies))


def decoder_options(
    *,
    kind: DecoderKind | None = None,
    dim: int = 512,
    depth: int = 8,
    heads: int = 16,
    width: int = 32,
    hidden: Sequence[int] = (256,),
) -> dict[str, Any]:
    """Options of :func:`build_patch_decoder`, checked; errors name them as methods do (``decoder``, ``decoder_dim``).

    Raises:
        ValueError: an option outside its range.
    """
    if kind is not None:
        check_choice("decoder", kind, ("conv", "mlp"))
    for name, value in (("dim", dim), ("depth", depth), ("heads", heads)):
        check_integer(f"decoder_{name}", value)
    if dim % heads or dim % 4:
        raise ValueError(f"decoder_dim must be a multiple of 4 and of decoder_heads ({heads}), got {dim}")
    _check_width("decoder_width", width)
    _check_hidden("decoder_hidden", hidden)
    return {"kind": kind, "dim": dim, "depth": depth, "heads": heads, "width": width, "hidden": hidden}


def _check_width(name: str, value: int) -> None:
    check_integer(name, value, 8)
    if value % 8:
        raise ValueError(f"{name} must be a multiple of 8, got {value}")


def _check_hidden(name: str, value: Sequence[int]) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a sequence of widths, got {value!r}")
    for width in value:
        check_integer(name, width)


@cache  # once a run, though its networks are built again where they are compared with untrained ones
def _say_larger(decoding: int, encoding: int) -> None:
    rank_zero_info(
        f"the decoder has {decoding:,} parameters, the encoder {encoding:,}: a smaller one (decoder_dim, "
        "decoder_depth) costs less; method/mae_small has one for a small ViT"
    )


def build_patch_decoder(
    backbone: nn.Module,
    spec: ImageSpec,
    grid: PatchGrid,
    *,
    kind: DecoderKind | None = None,
    dim: int = 512,
    depth: int = 8,
    heads: int = 16,
    width: int = 32,
    hidden: Sequence[int] = (256,),
) -> TokenDecoder | PooledDecoder:
    """The decoder that suits a backbone: a :class:`TokenDecoder` for a ViT, else a :class:`PooledDecoder`.

    Args:
        backbone: with ``num_features``.
        spec: of the images.
        grid: of :func:`~lit_ssl.networks.masked.patch_grid`.
        kind: of network behind a backbone without tokens: ``conv`` or ``mlp``; default ``mlp`` behind an
            :class:`~lit_ssl.networks.small.MLP`, else ``conv``.
        dim, depth, heads: of the :class:`TokenDecoder`.
        width: of the :class:`ConvDecoder`.
        hidden: of the :class:`MLPDecoder`.

    Raises:
        ValueError: an option of the decoder that is built outside its range.
    """
    if is_vit(backbone):
        decoder = TokenDecoder(backbone, grid, dim, depth, heads)
        encoding, decoding = (sum(p.numel() for p in part.parameters()) for part in (backbone, decoder))
        if decoding > encoding:
            _say_larger(decoding, encoding)
        return decoder
    features: int = backbone.num_features  # type: ignore[assignment]
    if kind is None:
        kind = "mlp" if isinstance(backbone, MLP) else "conv"
    network = MLPDecoder(features, spec, hidden) if kind == "mlp" else ConvDecoder(features, spec, width=width)
    return PooledDecoder(network, grid, features)
