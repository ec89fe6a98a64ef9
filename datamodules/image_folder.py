"""Any folder of one's own images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_ssl.checks import check_folder
from lit_ssl.printable import printable_name
from lit_ssl.views import View

from .decoded import HELD_OUT_NAMES, DecodedImages, held_out
from .formats import EXTENSIONS, find_images, left_out_line, split_folders
from .image_files import ImageFiles

__all__ = ["ImageFolder"]


class ImageFolder(DecodedImages):
    """A folder of images: nested or flat, of the formats in ``EXTENSIONS`` of :mod:`lit_ssl.datamodules.formats`, in
    any mode, labelled by sub-folder or not at all. HEIC is read with ``pillow-heif`` (the extra ``heic``).

    Held out are, in this order: the images of ``val_root``; those of ``root/val`` (or ``valid``, ``validation``,
    ``test``, ``eval``, ``dev``, ``holdout``, in any case), where ``root`` has that and ``train``, which then is all
    that trains; else the ``val_fraction`` of all images whose paths have the smallest hashes. Where all images lie in
    ``root/train``, its sub-folders are the classes. That choice is the same in every run, on every machine, and adding
    files hardly changes it.

    Files are decoded when needed (see :func:`~lit_ssl.datamodules.decode` for modes, orientation and transparency),
    each once for all views. The process that decodes also crops, mirrors and resizes (bilinear, antialiased, as
    torchvision's ``RandomResizedCrop``) what each view shows, from the whole upright image at its full resolution: a
    JPEG is decoded at a half, a quarter or an eighth only where every crop then still has as many pixels as its view.
    Colours, blur and the like follow on the device, in batches. Clean images are made from the central square of
    ``load_size`` pixels, which is ``image`` in a batch; so are the views of callables of one's own, which alone know
    what they crop.

    Crops are drawn as all else, by (seed, epoch, index): neither workers nor processes nor a resume change them.

    Args:
        root: the folder. Hidden files and files that are not images are left out.
        batch_size, seed, views: see :class:`ImageDataModule`.
        num_workers: decoding processes per loader; None takes one per core, 8 at most, shared among the processes of a
            machine.
        image_size: height and width of views and clean images; None is 224.
        load_size: side of the central square; default 8/7 of ``image_size``, as 256 is to 224.
        channels: 1 (gray), 3 (RGB; default) or 4 (RGBA); every file is converted.
        labels: ``folder``: the first-level sub-folder is the class; images outside of any have none. ``none``: no
            labels. ``auto`` (default): ``folder`` if there are at least two sub-folders with images.
        val_fraction: share of the images to hold out, from 0 (nothing) to below 1; default 0.1.
        val_root: a folder of held-out images, with sub-folders named as those of ``root``.
        max_corrupt: how many files of each split may be broken; see :class:`~lit_ssl.datamodules.ImageFiles`. Default
            0: the first one is an error.
        mean, std: of each channel, in [0, 1]; default ImageNet's.
        clean_images: make the central square of training images, too (default), which an online probe learns from.
            False saves its time where views say what they crop: ``image`` of a training batch is then what the first
            view shows, before its colours, a probe learns from that, and views cannot be exchanged in mid-training.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int | None = None,
        views: View | None = None,
        image_size: int | tuple[int, int] | None = None,
        load_size: int | None = None,
        channels: int = 3,
        labels: Literal["auto", "folder", "none"] = "auto",
        val_fraction: float = 0.1,
        val_root: str | Path | None = None,
        max_corrupt: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clean_images: bool = True,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            num_workers,
            seed,
            views,
            image_size,
            load_size=load_size,
            channels=channels,
            clean_images=clean_images,
            val_fraction=val_fraction,
            max_corrupt=max_corrupt,
            mean=mean,
            std=std,
        )
        if labels not in ("auto", "folder", "none"):
            raise ValueError(f"labels must be 'auto', 'folder' or 'none', got {labels!r}")
        self.labels = labels
        self.val_root = None if val_root is None else check_folder("val_root", val_root)
        self._left_out: Counter[str] = Counter()
        self._beside: list[str] = []  # what lies beside the folders of the splits, and is not used

    def load(self) -> None:
        train, val = self._splits()
        same = train[0] == val[0]  # then a rare class may be held out in full
        classes = self._classes(train[1] + val[1] if same else train[1])
        if classes is not None:
            unknown = sorted({_folder(path) for path in val[1]} - {None, *classes}, key=str)
            if unknown:
                raise ValueError(
                    f"{val[0]} holds the sub-folder {unknown[0]!r}, which is no class of {train[0]}: "
                    f"{', '.join(classes[:20])}{', …' if len(classes) > 20 else ''}"
                )
            self.class_names, self.num_classes = classes, len(classes)
        self.train_set = self._files(*train, classes, substitute=True)
        self.val_set = self._files(*val, classes, substitute=False) if val[1] else None
        self.labelled_set = None if classes is None else self.train_set

    def _splits(self) -> tuple[tuple[Path, list[str]], tuple[Path, list[str]]]:
        """Folder and paths of the images to train on, and of those held out."""
        if self.val_root is not None:
            if _below(self.root, self.val_root) is not None:
                raise ValueError(f"val_root={str(self.val_root)!r} holds root={str(self.root)!r}: nothing is held out")
            inside = _below(self.val_root, self.root)
            rest = [path for path in self._found(self.root) if inside is None or not path.startswith(inside)]
            if not rest:
                raise ValueError(f"val_root={str(self.val_root)!r} holds all images of root={str(self.root)!r}")
            return (self.root, rest), (self.val_root, self._found(self.val_root, listed=inside is not None))
        folders, others = split_folders(self.root, ("train", *HELD_OUT_NAMES))
        train = self.root / folders["train"] if "train" in folders else None
        held = [folders[name] for name in HELD_OUT_NAMES if name in folders]
        if train is not None and held:
            val = self.root / held[0]
            self._beside = sorted([*held[1:], *others])
            return (train, self._found(train)), (val, self._found(val))
        paths = self._found(self.root)
        chosen = held_out(paths, self.val_fraction)
        self.held_out_by = f" (val_fraction {self.val_fraction:g})"
        root, start = self.root, 0
        if train is not None and all(path.startswith(f"{train.name}/") for path in paths):
            root, start = train, len(train.name) + 1  # its sub-folders are the classes
        kept = [path[start:] for path in paths if path not in chosen]
        return (root, kept), (root, sorted(path[start:] for path in chosen))

    def _found(self, root: Path, *, listed: bool = False) -> list[str]:
        """Paths of the images in a folder; what is left out is counted, unless a folder above was ``listed`` before."""
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root.absolute()}; say with --data.root where the images are")
        left_out: Counter[str] = Counter()
        paths = find_images(root, left_out)
        if not listed:
            self._left_out.update(left_out)
        if not paths:
            there = left_out_line(left_out)
            raise FileNotFoundError(
                f"no images in {root.absolute()}; looked for files that end in {' '.join(EXTENSIONS)}"
                f"{f'; {there}' if there else ''}"
            )
        return paths

    def describe(self) -> str:
        parts = [super().describe()]
        if self._left_out:
            parts.append(left_out_line(self._left_out))
        if self._beside:
            names = ", ".join(map(printable_name, self._beside[:6])) + (", …" if len(self._beside) > 6 else "")
            parts.append(f"not used, beside the folders of the two splits: {names}")
        if self.class_names is not None and self.labels == "auto":
            names = ", ".join(map(printable_name, self.class_names[:6])) + (", …" if len(self.class_names) > 6 else "")
            parts.append(
                f"{len(self.class_names)} classes from sub-folders: {names} (--data.labels none if they are no classes)"
            )
        return "; ".join(parts)

    def _classes(self, paths: list[str]) -> list[str] | None:
        found = sorted({name for path in paths if (name := _folder(path)) is not None})
        if self.labels == "none" or (self.labels == "auto" and len(found) < 2):
            return None
        if not found:
            raise ValueError(f"labels='folder', but the images of {self.root} lie in no sub-folders; use labels='none'")
        return found

    def _files(self, root: Path, paths: list[str], classes: list[str] | None, substitute: bool) -> ImageFiles:
        number: dict[Any, int] = {name: i for i, name in enumerate(classes or [])}
        labels: Tensor = torch.tensor([number.get(_folder(path), -1) for path in paths], dtype=torch.int64)
        return ImageFiles(
            root,
            paths,
            labels,
            size=self.load_size,
            channels=self.spec.channels,
            max_corrupt=self.max_corrupt,
            substitute=substitute,
        )


def _below(folder: Path, root: Path) -> str | None:
    """How paths of images in ``folder`` begin, relative to ``root``; None if it does not lie inside."""
    folder, root = folder.resolve(), root.resolve()
    return folder.relative_to(root).as_posix() + "/" if folder.is_relative_to(root) else None


def _folder(path: str) -> str | None:
    """The first-level sub-folder that ``path`` lies in."""
    name, slash, _ = path.partition("/")
    return name if slash else None
