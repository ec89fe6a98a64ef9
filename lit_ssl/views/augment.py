"""One recipe for one view, its draws, and what makes the views of a whole batch out of them.

The draws are made on the host, where the keys are, so that every decision that shapes the work (which rows are blurred,
say) is known without asking the device. Only then is a pixel touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from lit_ssl.checks import check_interval, check_number, check_numbers
from lit_ssl.random import uniform

from . import colour
from .blur import gaussian_blur, kernel_radius
from .fused import available, fused
from .geometry import TRIES, axes, crop_boxes, sampler
from .rows import chosen, sent

__all__ = ["Draws", "Recipe", "augment", "draw", "is_small"]

_CHANCES = 2 * TRIES + 2 + 5 + 4 + 4 + 1  # uniform numbers a view
_BLOCK_BYTES = 1 << 20  # of pixels at a time on a CPU: what passes over them find still in its cache
_PLAIN = 5  # the kind of rows without jitter; the others' is their hue's stage, 0 to 4


@dataclass(frozen=True)
class Recipe:
    """What may happen to one view, in the order in which it happens. Everything is off by default.

    Args:
        scale, ratio: of the random resized crop, see :func:`lit_ssl.views.geometry.crop_boxes`.
        flip: probability of a horizontal flip.
        jitter: probability of the four colour operations, in random order.
        colour: of brightness, contrast and saturation (factors uniform in [max(0, 1 - value), 1 + value]) and hue
            (turns uniform in [-value, value]).
        grayscale: probability.
        blur: probability; sigma uniform in ``sigma``, in pixels; the kernel is 10 % of the view.
        solarize: probability; threshold 0.5.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 0.0
    colour: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grayscale: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        check_interval("scale", self.scale, 1.0)
        check_interval("ratio", self.ratio, float("inf"))
        check_interval("sigma", self.sigma, float("inf"))
        check_numbers("colour", self.colour, (float("inf"),) * 3 + (0.5,))
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            check_number(name, getattr(self, name))


@dataclass(frozen=True)
class Draws:
    """What happens to each of B rows, on the host.

    Args:
        box: int64 (B, 4), top, left, height, width.
        flip, jitter, grayscale, blur, solarize: bool (B,).
        factors: float64 (B, 4), of brightness, contrast, saturation, and the hue's turn.
        order: int64 (B, 4), which of those comes first, second and so on.
        sigma: float64 (B,), of the blur, in pixels.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        return Draws(*(getattr(self, f.name)[rows] for f in fields(self)))

    def of_crops(self, size: tuple[int, int]) -> Draws:
        """What is left where a loader has cropped, mirrored and resized to ``size``."""
        return replace(
            self, box=self.box.new_tensor([[0, 0, *size]]).expand(len(self.box), -1), flip=torch.zeros_like(self.flip)
        )


def is_small(size: tuple[int, int]) -> bool:
    """Whether views are of at most 64 pixels: CIFAR's world, for which papers leave out blur."""
    return max(size) <= 64


def draw(key: Tensor, name: str, recipes: Sequence[Recipe], size: tuple[int, int] | Tensor) -> Draws:
    """The draws of some views, view by view: a pure function of each row's key, the name and the view's place.

    Args:
        key: int64 (B,) on the host.
        name: of the draws.
        recipes: what may happen, one a view.
        size: height and width of the images, or int64 (B, 2), those of each row.

    Returns:
        Draws of ``len(recipes) * B`` rows: first all of the first view.
    """
    chance = uniform(key, name, (len(recipes), _CHANCES)).transpose(0, 1).reshape(-1, _CHANCES)
    crop, happens, factors, order, sigma = chance.split((2 * TRIES + 2, 5, 4, 4, 1), dim=1)

    def table(rows: list[list[float]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64).repeat_interleave(len(key), dim=0)

    scale, ratio, widths = table([[*r.scale, *r.ratio, *r.sigma] for r in recipes]).split(2, dim=1)
    odds = table([[r.flip, r.jitter, r.grayscale, r.blur, r.solarize] for r in recipes])
    strength = table([list(r.colour) for r in recipes])
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    low, high = torch.maximum(middle - strength, middle - 1), middle + strength
    flip, jitter, grayscale, blur, solarize = (happens < odds).unbind(1)
    return Draws(
        box=crop_boxes(crop, size.repeat(len(recipes), 1) if isinstance(size, Tensor) else size, scale, ratio),
        flip=flip,
        jitter=jitter,
        factors=torch.addcmul(low, factors, high - low),
        order=order.argsort(dim=1),
        grayscale=grayscale,
        blur=blur,
        sigma=torch.addcmul(widths[:, 0], sigma[:, 0], widths[:, 1] - widths[:, 0]),
        solarize=solarize,
    )


def _blocks(kind: Tensor, limit: int) -> Iterator[slice]:
    """Cuts rows sorted by ``kind`` into blocks of one kind and of at most ``limit`` rows."""
    start = 0
    for count in torch.bincount(kind).tolist():
        pieces = -(-count // limit)
        for piece in range(pieces):
            yield slice(start + count * piece // pieces, start + count * (piece + 1) // pieces)
        start += count


def _finish(x: Tensor, inside: bool, gray: list[bool], blur: list[bool], sigma: Tensor, solarize: list[bool]) -> Tensor:
    """What happens to few rows: grayscale, blur, solarize; and clamping, unless x is ``inside`` [0, 1] and stays so."""
    if x.shape[1] == 3 and (rows := chosen(gray, x.device)) is not None:
        x[rows] = colour.grayscale(x[rows])
    if (rows := chosen(blur, x.device)) is not None:
        inside = False  # as in a resample, sums leave [0, 1] by a rounding error
        sigma = sent(sigma[blur].to(x.dtype), x.device)
        x[rows] = gaussian_blur(x[rows], sigma, kernel_radius(x.shape[2]))
    if (rows := chosen(solarize, x.device)) is not None:
        x[rows] = colour.solarize(x[rows])
    return x if inside else x.clamp_(0, 1)


def _loaded(crops: Tensor, target: Tensor, dtype: torch.dtype, rows: slice) -> Tensor:
    """Some of the crops that a loader has made, in [0, 1]."""
    return crops.index_select(0, target[rows]).to(dtype).mul_(1 / 255)


def _together(image: Tensor, crops: Tensor | None, draws: Draws, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Views of all rows, alike rows side by side; a CPU takes as many at a time as stay in its cache."""
    (count, channels, height, width), device = image.shape, image.device
    compute = torch.promote_types(dtype, torch.float32)
    plan = colour.stages(draws.factors, draws.order, channels)
    kind = plan.hue_stage.where(draws.jitter, _PLAIN)
    by_kind = (2 * kind + draws.grayscale).argsort(stable=True)  # slices in place of gathers
    draws, kind, plan = draws[by_kind], kind[by_kind], plan[by_kind].to(compute, device)
    jittered, gray, blur, solarize = (
        mask.tolist() for mask in (draws.jitter, draws.grayscale, draws.blur, draws.solarize)
    )
    target = sent(by_kind, device)
    crop: Callable[[slice], Tensor]
    if crops is None:
        source = by_kind % max(1, count)
        down, across = (a.to(compute, device) for a in axes(draws.box, draws.flip, (height, width), size))
        crop = sampler(image, sent(source, device), down, across)
    else:
        crop = partial(_loaded, crops, target, compute)
    out = image.new_empty((len(by_kind), channels, *size), dtype=dtype)
    if device.type == "cpu":
        limit = max(1, _BLOCK_BYTES // (4 * channels * max(height * width, size[0] * size[1])))
    else:  # few launches count for more than a cache
        kind, limit = (kind == _PLAIN).to(torch.int64), len(by_kind)
    for rows in _blocks(kind, limit):
        x = crop(rows)
        if jittered[rows.start]:  # a block is jittered as a whole or not at all
            x = colour.jitter(x, plan[rows])  # which clamps
        x = _finish(x, jittered[rows.start], gray[rows], blur[rows], draws.sigma[rows], solarize[rows])
        out[target[rows]] = x.to(dtype)
    return out


@torch.no_grad()
def augment(
    image: Tensor,
    key: Tensor,
    recipes: Sequence[Recipe],
    size: tuple[int, int],
    dtype: torch.dtype,
    prefix: str = "view",
    crops: Tensor | None = None,
) -> list[Tensor]:
    """One view of each image a recipe, all views in one go: by compiled loops on a CPU with numba, by torch otherwise.

    Args:
        image: uint8 (B, C, H, W). Only its shape and device are read where there are ``crops``.
        key: int64 (B,) on the host.
        recipes: one a view.
        size: height and width of the views.
        dtype: of the views. Pixels are computed in float32, or in float64 where ``dtype`` is that.
        prefix: of the draws' names, so that a sample's views differ.
        crops: uint8 (V * B, C, *size), on the device of ``image``, first all of the first view: what is left of the
            images after crop, flip and resize, where a loader has done that.

    Returns:
        Tensors (B, C, *size) in [0, 1], contiguous, on the device of ``image``.

    Raises:
        ValueError: ``key`` or ``crops`` do not belong to ``image``.
    """
    if len(key) != len(image):
        raise ValueError(f"key must have an entry for each of {len(image)} images, got {len(key)}")
    wanted = (len(recipes) * len(image), image.shape[1], *size)
    if crops is not None and crops.shape != wanted:
        raise ValueError(
            f"crops must be {wanted}, of {len(recipes)} views of {len(image)} images, got {tuple(crops.shape)}"
        )
    draws = draw(key, prefix, recipes, (image.shape[2], image.shape[3]))
    if image.device.type == "cpu" and dtype != torch.float64 and image.numel() and available():
        shown, draws = (image, draws) if crops is None else (crops, draws.of_crops(size))
        parts, radius = [getattr(draws, field.name) for field in fields(draws)], kernel_radius(size[0])
        return [view.to(dtype) for view in fused(shown, parts, len(recipes), size, radius, own=crops is not None)]
    with torch.autocast(image.device.type, enabled=False):
        out = _together(image, crops, draws, size, dtype)
    return list(out.view(len(recipes), len(image), *out.shape[1:]).unbind(0))
