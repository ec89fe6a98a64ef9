"""From an image file to pixels: once decoded, its central square and the crops that views are made from."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from lit_ssl.random import sample_key
from lit_ssl.views.augment import draw
from lit_ssl.views.batch import CROPS, Batch
from lit_ssl.views.groups import Group

from .formats import open_image

__all__ = ["Crop", "CropPlan", "Decoded", "decode", "decode_opened", "stacked"]

Pixels: TypeAlias = npt.NDArray[np.uint8]
Decoded: TypeAlias = tuple[Pixels | None, list[Pixels]]
"""What is taken of an image: its central square, if asked for, and crops; (C, h, w), in whatever order in memory."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Crop:
    """What is cropped from an upright image, mirrored left and right if ``flip``, and resized to ``size``.

    Args:
        box: top, left, height and width, in pixels of the image.
        flip: see above.
        size: height and width of the result.
    """

    box: Sequence[int]
    flip: bool
    size: tuple[int, int]

    @property
    def spare(self) -> float:
        """Pixels of the image to a pixel of the result, along the axis that has fewer."""
        return min(self.box[2] / self.size[0], self.box[3] / self.size[1])

    def of(self, picture: Pixels, shrunk: int) -> Pixels:
        """The pixels, (C, *size); as ``torchvision.transforms.v2.functional.resized_crop``, bilinear and antialiased.

        Args:
            picture: (H, W, C), a half, quarter or eighth of the image where ``shrunk`` is 2, 4 or 8.
            shrunk: see there; 1 is the image itself.
        """
        top, left, height, width = self.box
        top, left, bottom, right = (int(edge / shrunk + 0.5) for edge in (top, left, top + height, left + width))
        out = _resize(picture[top:bottom, left:right], self.size, "bilinear")
        return out[:, :, ::-1] if self.flip else out


@dataclass(frozen=True)
class CropPlan:
    """What is cropped from every image.

    Args:
        groups: of the views.
        seed: the run's, resolved.
        square: take the central square, too.
    """

    groups: tuple[Group, ...]
    seed: int
    square: bool = True

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view."""
        return [group.size for group in self.groups for _ in group.recipes]

    def draw(self, epoch: int, sizes: Mapping[int, tuple[int, int]]) -> dict[int, dict[tuple[int, int], list[Crop]]]:
        """The crops of some images, a list of all views': by index, and by the height and width of the upright image.

        Args:
            epoch: -1 for validation.
            sizes: by index, height and width as stored. An image may have to be turned for it to stand upright, which
                not every format tells before it is decoded.
        """
        if not sizes:
            return {}
        places = [(i, size) for i, stored in sizes.items() for size in {stored, stored[::-1]}]
        crops: dict[int, dict[tuple[int, int], list[Crop]]] = {i: {} for i in sizes}
        key = sample_key(self.seed, epoch, torch.tensor([i for i, _ in places]))
        size = torch.tensor([size for _, size in places])
        for group in self.groups:
            draws = draw(key, group.name, group.recipes, size)
            boxes = zip(draws.box.tolist(), draws.flip.tolist(), strict=True)
            for row, (box, flip) in enumerate(boxes):
                i, upright = places[row % len(places)]
                crops[i].setdefault(upright, []).append(Crop(box, flip, group.size))
        return crops

    def entries(self, crops: Sequence[Sequence[Pixels]]) -> Batch:
        """Of a batch: for each group ``crops/…``, uint8 (B, V, C, h, w).

        Args:
            crops: of each image those of all views.
        """
        entries = {}
        views = iter(zip(*crops, strict=True))
        for group in self.groups:
            rows = [crop for _ in group.recipes for crop in next(views)]  # view by view in memory, as views take them
            entries[CROPS + group.name] = stacked(rows).unflatten(0, (len(group.recipes), -1)).transpose(0, 1)
        return entries


def stacked(rows: Sequence[Pixels]) -> Tensor:
    """Uint8 (B, C, h, w), contiguous, of B images (C, h, w)."""
    out = torch.empty((len(rows), *rows[0].shape), dtype=torch.uint8)
    for place, row in zip(out.numpy(), rows, strict=True):
        place[...] = row  # takes a third of the time of torch.stack, where the channels lie side by side
    return out


def decode(file: str | os.PathLike[str] | BinaryIO, size: int, channels: int) -> Tensor:
    """An image file as uint8 (channels, size, size): its central square, resampled (bicubic, antialiased).

    Upright by its EXIF orientation. 16-bit gray is scaled to 8 bits, and 32-bit integer gray is taken as 16-bit, as
    Pillow has it; 32-bit float gray as 0 to 255; transparent pixels show white, unless ``channels`` is 4; an animation
    gives its first frame.

    Args:
        file: its path, or the open file.
        size: height and width of the result, in pixels; smaller images are enlarged.
        channels: 1 gray, 3 RGB, 4 RGBA.

    Raises:
        Exception: whatever Pillow or torchvision raise on a file that they cannot decode in full.
    """
    with open_image(file) as opened:
        square, _ = decode_opened(opened, size, channels)
        assert square is not None, "was asked for"
        return torch.from_numpy(square)


def decode_opened(
    opened: ImageFile.ImageFile,
    size: int,
    channels: int,
    crops: Mapping[tuple[int, int], Sequence[Crop]] | None = None,
    with_square: bool = True,
) -> Decoded:
    """The central square as :func:`decode` has it, and crops, from one decoding.

    A JPEG is decoded at a half, a quarter or an eighth where every crop then still has as many pixels as are asked for,
    and the square twice as many.

    Args:
        opened: of which no pixel has been asked for yet.
        size, channels: see :func:`decode`.
        crops: by height and width of the upright image, which not every format tells before it is decoded.
        with_square: whether the square is wanted; crops are the same either way.
    """
    width, height = opened.size
    jpeg, plain, shrunk = opened.format == "JPEG", False, 1
    if jpeg:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1)
        if turned in (5, 6, 7, 8):
            width, height = height, width
        chosen = crops[height, width] if crops else ()
        spare = min(min(height, width) / (2 * size), *(crop.spare for crop in chosen), math.inf)
        shrunk = next((fraction for fraction in (8, 4, 2) if fraction <= spare), 1)
        if opened.draft(None, (opened.width // shrunk, opened.height // shrunk)) is None:
            shrunk = 1
        plain = shrunk == turned == 1 and opened.mode == _MODES[channels] == "RGB"
    if plain and _torchvision_decodes():
        picture = _jpeg(opened)
    else:
        ImageOps.exif_transpose(opened, in_place=True)
        picture = _pixels(opened, channels)
    if not jpeg:
        chosen = crops[picture.shape[0], picture.shape[1]] if crops else ()
    cut = [crop.of(picture, shrunk) for crop in chosen]
    if not with_square:
        return None, cut
    side = min(picture.shape[:2])
    top, left = ((edge - side) // 2 for edge in picture.shape[:2])
    return _resize(picture[top : top + side, left : left + side], (size, size), "bicubic"), cut


def _jpeg(opened: ImageFile.ImageFile) -> Pixels:
    """A JPEG in RGB as (H, W, 3), as Pillow decodes it; faster, because no pixel is copied."""
    assert opened.fp is not None, "a file of which no pixel has been asked for is open"
    opened.fp.seek(0)
    coded = torch.frombuffer(bytearray(opened.fp.read()), dtype=torch.uint8)
    return decode_jpeg(coded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


@cache
def _torchvision_decodes() -> bool:
    """Whether torchvision was built with a JPEG decoder, and one that makes the same pixels as Pillow's."""
    picture = np.arange(3 * 48 * 40, dtype=np.uint32).reshape(48, 40, 3) ** 2 // 97 % 256
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=80)
    with Image.open(file) as opened:
        try:
            found = _jpeg(opened)
        except RuntimeError:
            return False
        return np.array_equal(found, np.asarray(opened))


def _pixels(image: Image.Image, channels: int) -> Pixels:
    """A decoded image of any mode as (H, W, channels)."""
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(deep / 257).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.rint(np.nan_to_num(np.asarray(image)).clip(0, 255)).astype(np.uint8))
    if channels != 4 and (image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    pixels = np.asarray(image)
    return pixels[:, :, None] if channels == 1 else pixels


def _resize(picture: Pixels, size: tuple[int, int], mode: str) -> Pixels:
    """(H, W, C) to (C, *size), antialiased: in integers, with vector instructions, within one level of Pillow."""
    x = torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)
    return F.interpolate(x[None], size=size, mode=mode, antialias=True)[0].numpy()
