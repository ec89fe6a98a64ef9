"""Image files of any kind: finding them, decoding them, and what happens when one is broken."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from lit_ssl.views import Batch

__all__ = ["EXTENSIONS", "CorruptImageError", "ImageFiles", "decode", "find_images", "report_broken"]

EXTENSIONS = tuple(".bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())  # noqa: SIM905

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WORKER_PREFIX = f"{__name__}.CorruptImageError: "


class CorruptImageError(RuntimeError):
    """More files could not be decoded, or rows of a table not be used, than ``max_corrupt`` allows."""

    def __init__(self, message: str) -> None:
        # From a worker process torch raises us anew, with the worker's traceback around our message.
        super().__init__(message.rpartition(_WORKER_PREFIX)[2].strip())


def report_broken(reasons: Sequence[str], count: int, max_corrupt: int, noun: str = "file") -> None:
    """Warns of what is left out, each by name, while no more of it is broken than is allowed.

    Args:
        reasons: what was found broken just now, and why.
        count: how many have been found so far, these among them.
        max_corrupt: how many are allowed.
        noun: what they are.

    Raises:
        CorruptImageError: ``count`` exceeds ``max_corrupt``; names the first three.
    """
    if count > max_corrupt:
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        what = f"the {count} broken {noun}s found exceed" if count > 1 else f"no broken {noun} is allowed by"
        raise CorruptImageError(
            f"{'; '.join(reasons[:3])}{more}; {what} max_corrupt={max_corrupt}. Repair or remove "
            f"{'it' if len(reasons) == 1 else 'them'}, or allow more with --data.max_corrupt {max(10, 2 * count)}"
        )
    for place, reason in enumerate(reasons, count - len(reasons) + 1):
        warnings.warn(f"skipped: {reason}; {place} of at most {max_corrupt}", stacklevel=3)


def find_images(root: Path) -> list[str]:
    """Paths of all image files below ``root``, relative to it with forward slashes, sorted.

    Hidden files and folders, and files with other extensions than :data:`EXTENSIONS` (in any case), are left out.
    Links to folders are followed, but not in circles.
    """

    def walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from walk(entry.path, f"{prefix}{entry.name}/", above | {real})
                elif entry.name.lower().endswith(EXTENSIONS):
                    yield prefix + entry.name

    return sorted(walk(str(root), "", frozenset()))


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
        Exception: whatever Pillow raises on a file that it cannot decode in full.
    """
    with Image.open(file) as opened:
        if opened.format == "JPEG":
            opened.draft(None, (2 * size, 2 * size))  # a half, quarter or eighth, where enough is left
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.float64).clip(0, 65535)
            image = Image.fromarray(np.rint(deep / 257).astype(np.uint8))
        elif image.mode == "F":
            image = Image.fromarray(np.rint(np.nan_to_num(np.asarray(image)).clip(0, 255)).astype(np.uint8))
        if channels != 4 and (image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(_MODES[channels])
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


class ImageFiles(Dataset[Batch]):
    """Images decoded from files when they are asked for.

    A file that cannot be decoded is reported by name, once, and skipped; from the file that exceeds ``max_corrupt`` on,
    every such file is an error. What stands in its place depends on the files alone, so neither workers, processes,
    earlier epochs nor a resume change it: with ``substitute``, the next file in the list that can be decoded, with its
    own label and index (training keeps its batch size); without, a padding row of index -1, which evaluation drops, so
    that no image counts twice.

    Args:
        root: folder of the files.
        paths: of the files, relative to ``root``, at least one.
        labels: int64 (N,), -1 for none.
        size: height and width of the images, in pixels.
        channels: 1, 3 or 4.
        max_corrupt: how many different files of the set may be broken, as one process and its workers see them.
        substitute: see above.
        found: how many broken samples were left out before, which count as well.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Tensor,
        *,
        size: int,
        channels: int,
        max_corrupt: int = 0,
        substitute: bool = True,
        found: int = 0,
    ) -> None:
        self.root = root
        self.labels = labels
        self.size = size
        self.channels = channels
        self.max_corrupt = max_corrupt
        self.substitute = substitute
        self.found = found
        # One array, not N strings, whose reference counts would make every worker copy the list page by page.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._broken = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # seen so far, by any worker

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, i: int) -> Path:
        """The file of image ``i``."""
        return self.root / os.fsdecode(self._paths[i])

    def source(self, i: int) -> Path | BinaryIO:
        """What image ``i`` is decoded from."""
        return self.path(i)

    def name(self, i: int) -> str:
        """What messages call image ``i``."""
        return str(self.path(i))

    @property
    def corrupt(self) -> list[Path]:
        """The files that could not be decoded so far."""
        return [self.path(i) for i in self._broken.nonzero().flatten().tolist()]

    def _read(self, i: int) -> Tensor | None:
        try:
            return decode(self.source(i), self.size, self.channels)
        except Exception as error:  # Pillow's decoders raise nearly anything
            if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError | PermissionError):
                raise  # the disk or the network failed, not this file: another time it would be read
            if not self.root.is_dir():
                raise FileNotFoundError(
                    f"the folder {self.root.absolute()} is gone, in the middle of the run: bring it back (is its disk "
                    "still mounted?); the run resumes with --ckpt_path last"
                ) from error
            reason = f"{self.name(i)} cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})"
        if not self._broken[i]:
            self._broken[i] = True
            count = self.found + int(self._broken.sum())
            if count > self.max_corrupt:
                self._broken[i] = False
            report_broken([reason], count, self.max_corrupt)
        return None

    def _row(self, i: int) -> tuple[Tensor, int]:
        """Image ``i`` and its index, or what stands in its place."""
        for place in range(i, i + len(self)) if self.substitute else [i]:
            image = self._read(place % len(self))
            if image is not None:
                return image, place % len(self)
        if self.substitute:
            raise CorruptImageError(f"not one of the {len(self)} files of {self.root} can be decoded")
        return self._blank(), -1

    def _blank(self) -> Tensor:
        return torch.zeros(self.channels, self.size, self.size, dtype=torch.uint8)

    def __getitem__(self, i: int) -> Batch:
        """One sample: ``image`` uint8 (C, size, size), ``label`` and ``index`` int64 scalars."""
        if not -1 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        return {name: rows[0] for name, rows in self.__getitems__([i]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch: ``image`` uint8 (B, C, size, size), ``label`` and ``index`` int64 (B,); -1 is a padding row."""
        rows = [(self._blank(), -1) if i < 0 else self._row(i) for i in indices]
        index = torch.tensor([i for _, i in rows], dtype=torch.int64)
        label = torch.where(index < 0, -1, self.labels[index.clamp(min=0)])
        return {"image": torch.stack([image for image, _ in rows]), "label": label, "index": index}
