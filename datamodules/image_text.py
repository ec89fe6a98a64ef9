"""Images and captions of one's own: a table, or WebDataset's shards."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from lit_ssl.checks import check_folder
from lit_ssl.views import Batch, View

from .captions import Columns, Record, Strings, read_table, row_name
from .decoded import HELD_OUT_NAMES, DecodedImages, held_out
from .image_files import ImageFiles, report_broken
from .shards import expand, read_shards

__all__ = ["CaptionedFiles", "ImageText"]


class CaptionedFiles(ImageFiles):
    """Images with captions, decoded when they are asked for; what is broken is handled as in :class:`ImageFiles`.

    Args:
        root: folder of the images or shards.
        records: at least one.
        numbers: of classes, by label.
        table: what messages say before the number of a row; None for shards.
        shards: names of those that the records' places refer to; None for single files.
        **arguments: of :class:`ImageFiles`.
    """

    def __init__(
        self,
        root: Path,
        records: Sequence[Record],
        numbers: dict[str, int],
        *,
        table: str | None = None,
        shards: Sequence[str] | None = None,
        **arguments: Any,
    ) -> None:
        labels = torch.tensor([numbers.get(record.label, -1) for record in records], dtype=torch.int64)
        super().__init__(root, [record.image for record in records], labels, **arguments)
        self.table, self.shards = table, shards
        self._captions = Strings(caption for record in records for caption in record.captions)
        self._first = np.cumsum([0, *(len(record.captions) for record in records)])
        self._places = np.array([record.place for record in records])

    def captions(self, i: int) -> tuple[str, ...]:
        """All captions of image ``i``, at least one."""
        return tuple(self._captions[place] for place in range(self._first[i], self._first[i + 1]))

    def source(self, i: int) -> Path | BinaryIO:
        if self.shards is None:
            return super().source(i)
        shard, offset, length = self._places[i].tolist()
        with open(self.root / self.shards[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(length))

    def name(self, i: int) -> str:
        return super().name(i) if self.table is None else f"{self.table} {self._places[i, 0]}: {super().name(i)}"

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch as that of :class:`ImageFiles`, with ``captions``, a tuple a row, and the first of each as ``text``.

        Those of a padding row are empty.
        """
        batch = super().__getitems__(indices)
        captions = [self.captions(i) if i >= 0 else ("",) for i in batch["index"].tolist()]
        return {**batch, "text": [ways[0] for ways in captions], "captions": captions}


class ImageText(DecodedImages):
    """Images with one or several captions each: listed in a table, or packed in WebDataset's tar shards.

    **A table** is a CSV file with a header, in UTF-8 (``.tsv`` with tabs), or a Parquet file (extra ``parquet``): a
    column of image paths relative to ``root``, and one or several of captions. An image may also have several rows, one
    a caption. Held out are, in this order: the rows whose ``split_column`` says ``val_split``; else the
    ``val_fraction`` of all training images whose names have the smallest hashes. That choice is the same in every run,
    on every machine, and adding images hardly changes it.

    **Shards** (extra ``webdataset``) are uncompressed tar files; a sample's members share a name up to the first dot:
    ``0001.jpg``, ``0001.txt``. They are not streamed. Every process of a run scans all of them whenever it starts, and
    notes the place of each image: about a second for 15,000 members. From then on images are read at random like files,
    so that what this package promises holds for shards, too: a whole permutation of the samples in each epoch, the same
    order on any number of processes and workers, and a resume in mid-epoch that decodes no image again. A stream
    shuffles within a buffer, and its order depends on how many read it.

    Training takes one of an image's captions for each sample and epoch, by key; evaluation the first. Images are
    decoded and cropped as those of :class:`~lit_ssl.datamodules.ImageFolder`.

    A bad row (no or an empty caption, bytes that are no UTF-8, another number of columns than the header, a label or
    split at odds with an earlier row of the image) and an image that is missing or cannot be decoded are reported with
    the number of their line, once, and left out. When more are bad than ``max_corrupt``, that is an error.

    Args:
        root: folder that paths and shards are relative to.
        table: path of the table below ``root``; default ``captions.csv``.
        batch_size, seed, views: see :class:`ImageDataModule`.
        num_workers, image_size, load_size, channels, mean, std, clean_images: see
            :class:`~lit_ssl.datamodules.ImageFolder`.
        image_column: default ``image``; of shards the extension of images, by default any that an image has.
        caption_columns: one or several; default ``caption``. Of shards the extensions of captions; default ``txt``.
        label_column: of class names; of shards an extension such as ``cls``. None (default): no labels.
        split_column: says which split a row is of. None (default): hold out ``val_fraction``.
        train_split: what it says of rows to train on; default ``train``. Rows of other splits than these two are left
            out.
        val_split: what it says of held-out rows; by default ``val``, ``valid``, ``validation`` or ``test``, the first
            that occurs.
        val_fraction: share of the images to hold out where nothing says which, from 0 (nothing) to below 1; default
            0.1.
        shards: one or several of WebDataset's brace patterns below ``root``, such as ``train-{000000..000009}.tar``, in
            place of a table.
        val_shards: those of the held-out samples; None (default): hold out ``val_fraction``.
        max_corrupt: how many rows and images of each split may be bad; default 0: the first one is an error.

    Raises:
        ValueError: an argument out of range, or two that exclude each other.
    """

    def __init__(
        self,
        root: str | Path,
        table: str | None = None,
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int | None = None,
        views: View | None = None,
        image_size: int | tuple[int, int] | None = None,
        load_size: int | None = None,
        channels: int = 3,
        image_column: str | None = None,
        caption_columns: str | Sequence[str] | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        val_fraction: float = 0.1,
        shards: str | Sequence[str] | None = None,
        val_shards: str | Sequence[str] | None = None,
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
        given = {"image_column": image_column, "label_column": label_column, "split_column": split_column}
        for name, value in {**given, "table": table, "train_split": train_split, "val_split": val_split}.items():
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name} must be a string that is not empty, got {value!r}")
        self.shards, self.val_shards = _names("shards", shards), _names("val_shards", val_shards)
        captions = _names("caption_columns", caption_columns)
        if table is not None:
            check_folder("table", table)
        for name, paths in {"shards": self.shards, "val_shards": self.val_shards}.items():
            for path in paths:
                check_folder(name, path)
        if self.shards:
            for name, value in {"table": table, "split_column": split_column}.items():
                if value is not None:
                    raise ValueError(f"{name} must be None where shards are given, got {value!r}")
        elif self.val_shards:
            raise ValueError(f"val_shards must be None where no shards are given, got {val_shards!r}")
        self.table = os.path.expanduser(table or "captions.csv")
        self.columns = Columns(
            image=image_column if self.shards else image_column or "image",
            captions=captions or (("txt",) if self.shards else ("caption",)),
            label=label_column,
            split=split_column,
        )
        if train_split == val_split:
            raise ValueError(f"val_split must differ from train_split, got {val_split!r} for both")
        self.train_split, self.val_split = train_split, val_split

    def load(self) -> None:
        train, val, source = self._from_shards() if self.shards else self._from_table()
        where = self.root / (self.shards[0] if self.shards else self.table)
        if not train:
            raise ValueError(f"{where} holds no image to train on")
        if self.columns.label is not None:
            self.class_names = sorted({record.label for record in (*train, *val)} - {""}, key=_by_number)
            self.num_classes = len(self.class_names)
            if not self.class_names:
                raise ValueError(f"label_column={self.columns.label!r} is empty throughout {where}")
        numbers = {name: number for number, name in enumerate(self.class_names or [])}
        arguments = {**source, "size": self.load_size, "channels": self.spec.channels, "max_corrupt": self.max_corrupt}
        self.train_set = CaptionedFiles(self.root, train, numbers, substitute=True, **arguments)
        self.val_set = CaptionedFiles(self.root, val, numbers, substitute=False, **arguments) if val else None
        self.labelled_set = None if self.class_names is None else self.train_set

    def _from_table(self) -> tuple[list[Record], list[Record], dict[str, Any]]:
        """Records to train on, those held out, and what their data sets need to know of where they come from."""
        path = self.root / self.table
        records, bad = read_table(path, self.columns)
        self.bad = bad
        report_broken(bad, len(bad), self.max_corrupt, "row")
        return *self._split(records), {"table": row_name(path), "found": len(bad)}

    def _from_shards(self) -> tuple[list[Record], list[Record], dict[str, Any]]:
        trained, apart = expand(self.root, self.shards), expand(self.root, self.val_shards)
        names = [*trained, *apart]
        records, bad = read_shards(self.root, names, self.columns)
        self.bad = bad
        report_broken(bad, len(bad), self.max_corrupt, "sample")
        if not apart:
            train, val = self._split(records)
        else:
            train = [record for record in records if record.place[0] < len(trained)]
            val = [record for record in records if record.place[0] >= len(trained)]
        return train, val, {"shards": names, "found": len(bad)}

    def _split(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        if self.columns.split is not None:
            said = {record.split for record in records}
            val_split = self.val_split or next((name for name in HELD_OUT_NAMES if name in said), None)
            for argument, split in (("train_split", self.train_split), ("val_split", val_split)):
                if split is not None and split not in said:
                    found = ", ".join(map(repr, sorted(said)[:10]))
                    raise ValueError(
                        f"{argument}={split!r} is in no row of column {self.columns.split!r}, only {found}"
                    )
            train = [record for record in records if record.split == self.train_split]
            if val_split is not None:
                return train, [record for record in records if record.split == val_split]
            records = train
        self.held_out_by = f" (val_fraction {self.val_fraction:g})"
        chosen = held_out([record.image for record in records], self.val_fraction)
        sets: tuple[list[Record], list[Record]] = ([], [])
        for record in records:
            sets[record.image in chosen].append(record)
        return sets


def _names(argument: str, value: Any) -> tuple[str, ...]:
    """One or several strings, none for None."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{argument} must be one or several strings that are not empty, got {value!r}")
    return tuple(names)


def _by_number(name: str) -> tuple[bool, int, str]:
    """Orders numbers as numbers, and other names behind them."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)
