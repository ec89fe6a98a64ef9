"""Image files of any kind: decoding them, and what happens when one is broken."""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from lit_ssl.printable import printable_name
from lit_ssl.views import Batch
from lit_ssl.views.groups import Group

from .decoding import CropPlan, Decoded, decode_opened, stacked
from .formats import HEIF, endings, open_image

__all__ = ["CorruptImageError", "ImageFiles", "report_broken"]

# None is of all that Pillow says of a file's content.
_FAULTS_OF_A_FILE = {
    None,
    0,
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_TOGETHER = 32  # files that are open at a time, whose crops are drawn in one go
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
        warnings.warn(f"skipped: {printable_name(reason)}; {place} of at most {max_corrupt}", stacklevel=3)


def _is_of_the_file(error: Exception) -> bool:
    """Whether the file, or its name, is to blame, and not the disk or the network."""
    return getattr(error, "errno", None) in _FAULTS_OF_A_FILE


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

    plan: CropPlan | None = None  # of what `cropped` gives

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

    def fingerprint(self) -> str:
        """The number of files and a hash of their names, for checkpoints."""
        return f"{len(self):,} (names {hashlib.blake2b(self._paths.tobytes(), digest_size=6).hexdigest()})"

    def path(self, i: int) -> Path:
        """The file of image ``i``."""
        return self.root / os.fsdecode(self._paths[i])

    def source(self, i: int) -> Path | BinaryIO:
        """What image ``i`` is decoded from."""
        return self.path(i)

    def name(self, i: int) -> str:
        """What messages call image ``i``."""
        return printable_name(str(self.path(i)))

    def fault(self, i: int) -> str | None:
        """What is wrong with the file of image ``i``, by name; None if it can be decoded."""
        try:
            with open_image(self.source(i)) as opened:
                decode_opened(opened, self.size, self.channels)
        except Exception as error:  # Pillow raises nearly anything
            if not _is_of_the_file(error):
                raise
            return self._reason(i, error)
        return None

    def _reason(self, i: int, error: Exception) -> str:
        hint = ""
        if (
            isinstance(error, UnidentifiedImageError)
            and self.name(i).lower().endswith(HEIF)
            and HEIF[0] not in endings()
        ):
            hint = "; HEIC needs pip install 'lit-ssl[heic]'"
        return f"{self.name(i)} cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())}{hint})"

    @property
    def corrupt(self) -> list[Path]:
        """The files that could not be decoded so far."""
        return [self.path(i) for i in self._broken.nonzero().flatten().tolist()]

    def cropped(self, groups: Sequence[Group], seed: int, square: bool = True) -> ImageFiles:
        """The same files, whose batches also hold the crops of views: ``crops/…``, see :mod:`lit_ssl.views.batch`.

        Without ``square`` they hold no ``image``; :class:`~lit_ssl.datamodules.dataset.Loader` adds what the first view
        crops.

        They are those that the key of (seed, epoch, index) draws, index being that of the image which is there in the
        end. So ``__getitems__`` takes pairs (epoch, index). Bare indices, of samplers that know no epoch, get no crops.
        """
        other = copy.copy(self)
        other.plan = CropPlan(tuple(groups), seed, square)
        return other

    def _report(self, i: int, error: Exception) -> None:
        """Reports that image ``i`` cannot be decoded, if it is the file that is to blame."""
        if not _is_of_the_file(error):
            raise error  # the disk or the network failed, not this file: another time it would be read
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"the folder {self.root.absolute()} is gone, in the middle of the run: bring it back (is its disk "
                "still mounted?); the run resumes with --ckpt_path last"
            ) from error
        if self._broken[i]:
            return
        self._broken[i] = True
        count = self.found + int(self._broken.sum())
        if count > self.max_corrupt:
            self._broken[i] = False
        report_broken([self._reason(i, error)], count, self.max_corrupt)

    def _read(self, indices: Sequence[int], epoch: int | None) -> dict[int, Decoded]:
        """By index, those of some images that can be decoded; with crops if there is an epoch."""
        read = {}
        with ExitStack() as stack:
            opened = {}
            for i in dict.fromkeys(indices):
                try:
                    opened[i] = stack.enter_context(open_image(self.source(i)))
                except Exception as error:  # Pillow raises nearly anything
                    self._report(i, error)
            sizes = {i: image.size[::-1] for i, image in opened.items()}
            crops = {} if self.plan is None or epoch is None else self.plan.draw(epoch, sizes)
            square = self._with_square(epoch)
            for i, image in opened.items():
                try:
                    with closing(image):  # and its pixels freed, before the next one is decoded
                        read[i] = decode_opened(image, self.size, self.channels, crops.get(i), square)
                except Exception as error:
                    self._report(i, error)
        return read

    def _rows(self, indices: Sequence[int], epoch: int | None) -> list[tuple[int, Decoded]]:
        """Images with their indices, or what stands in their places."""
        rows: list[tuple[int, Decoded] | None] = [None] * len(indices)
        due = {row: i for row, i in enumerate(indices) if i >= 0}  # the file to read next
        for _ in range(len(self) if self.substitute else 1):
            read = self._read([*due.values()], epoch)
            rows = [(due[row], read[due[row]]) if due.get(row) in read else found for row, found in enumerate(rows)]
            due = {row: (i + 1) % len(self) for row, i in due.items() if i not in read}
            if not due:
                break
        if due and self.substitute:
            raise CorruptImageError(f"not one of the {len(self)} files of {self.root} can be decoded")
        return [(-1, self._blank(epoch)) if row is None else row for row in rows]

    def _with_square(self, epoch: int | None) -> bool:
        return self.plan is None or self.plan.square or epoch is None

    def _blank(self, epoch: int | None) -> Decoded:
        sizes = self.plan.sizes if self.plan is not None and epoch is not None else []
        square, *crops = (np.zeros((self.channels, *size), np.uint8) for size in ((self.size, self.size), *sizes))
        return square if self._with_square(epoch) else None, crops

    def __getitem__(self, i: int) -> Batch:
        """One sample: ``image`` uint8 (C, size, size), ``label`` and ``index`` int64 scalars."""
        if not -1 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        return {name: rows[0] for name, rows in self.__getitems__([i]).items()}

    def __getitems__(self, indices: Sequence[Any]) -> Batch:
        """A batch: ``image`` uint8 (B, C, size, size), ``label`` and ``index`` int64 (B,); -1 is a padding row.

        With crops and without the square there is no ``image``, see :meth:`cropped`.

        Args:
            indices: integers, or pairs of the epoch (one for all) and an integer, see :meth:`cropped`.
        """
        epoch = None
        if isinstance(indices[0], tuple):
            (epoch, *_), indices = zip(*indices, strict=True)
        parts = [indices[start : start + _TOGETHER] for start in range(0, len(indices), _TOGETHER)]
        rows = [row for part in parts for row in self._rows(part, epoch)]
        index = torch.tensor([i for i, _ in rows], dtype=torch.int64)
        label = torch.where(index < 0, -1, self.labels[index.clamp(min=0)])
        crops = {}
        if self.plan is not None and epoch is not None:
            crops = self.plan.entries([cut for _, (_, cut) in rows])
        squares = [square for _, (square, _) in rows if square is not None]
        image = {"image": stacked(squares)} if squares else {}
        return {**image, "label": label, "index": index, **crops}
