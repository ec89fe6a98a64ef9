"""``lit-ssl check``: every file of a data set is decoded once, and all that are broken are listed together."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_ssl.cli import Parser
from lit_ssl.datamodules import ImageDataModule, ImageFiles, outlast_signals
from lit_ssl.layers import Layer, find_own_classes, with_classes_first
from lit_ssl.messages import UserError, is_users, line_of, quiet
from lit_ssl.printable import printable_name
from lit_ssl.yaml_files import read_yaml

__all__ = ["check"]


class _Faults(Dataset[str]):
    """What is wrong with each file of a data set; empty for nothing."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> str:
        return self.files.fault(i) or ""


class _DataLayer(Layer):
    """Of a layer, such as the ``config.yaml`` of a whole run, what it says of the data."""

    def take(self, parser: Any, cfg: Any, values: str, option_string: str | None) -> None:
        text = values if values.lstrip().startswith("{") else Path(values).read_text(encoding="utf-8")
        data = read_yaml(text).get("data")
        if data is not None:
            super().take(parser, cfg, json.dumps({"data": data}), option_string)


def check(args: Sequence[str]) -> int:
    """Compose the data as ``fit`` does, decode each file, and print every broken one with its reason.

    What layers say of other things than data is passed over. Bad rows of a table, and bad samples of shards, count as
    broken. Images in memory are read in full, which is all that can be tried of them. The clean image of each file is
    made and dropped, by ``num_workers`` processes.

    Args:
        args: ``check`` and flags: layers, ``--data.…``.

    Returns:
        The exit code: 0 where nothing is broken, else 2.

    Raises:
        UserError: a mistake in the arguments, data that are not there, or a machine that fails.
    """
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped: ")  # listed below
        try:
            data = _data(args)
            sets = _file_sets(data)
            count = sum(map(len, sets))
            broken = [
                *getattr(data, "bad", ()),
                *_faults(sets, count, data.default_workers() if data.num_workers is None else data.num_workers),
            ]
        except Exception as error:
            if isinstance(error, UserError) or not is_users(error):
                raise
            raise UserError(line_of(error)) from error
    for fault in broken:
        print(printable_name(fault))
    read = f"{count:,} files read" if sets else "all images are in memory"
    print(f"{len(broken):,} broken, {read}" if broken else f"nothing is broken, {read}")
    return 2 if broken else 0


def _data(args: Sequence[str]) -> ImageDataModule:
    """The data module that the arguments ask for, loaded."""
    find_own_classes(args)
    parser = Parser(prog="lit-ssl check", description="decode every file of a data set and list the broken ones")
    parser.add_argument("-c", "--config", action=_DataLayer, metavar="LAYER", help="a file or a shipped layer's name")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    config = parser.parse_args(with_classes_first(args)[1:])
    if config.get("data") is None:
        raise UserError("no data: lit-ssl check --config data/image_folder --data.root DIR")
    arguments = config.data.get("init_args")
    if arguments is not None and "max_corrupt" in arguments:
        arguments.max_corrupt = sys.maxsize  # all of them are told here
    data: Any = parser.instantiate(config).data
    if not isinstance(data, ImageDataModule):
        raise UserError(f"check reads the data modules of this package and their subclasses, got {type(data).__name__}")
    data.prepare_data()
    data.setup()
    print(data.describe())
    return data


def _file_sets(data: ImageDataModule) -> list[ImageFiles]:
    """The sets that decode files, each once."""
    sets = (data.train_set, data.val_set, data.labelled_set)
    return list({id(files): files for files in sets if isinstance(files, ImageFiles)}.values())


def _faults(sets: Sequence[ImageFiles], count: int, workers: int) -> Iterator[str]:
    """What is wrong with each broken file of all sets, in their order; says on a terminal how far it is."""
    done, begun, told = 0, time.monotonic(), 0.0
    for files in sets:
        for faults in DataLoader(
            _Faults(files), batch_size=64, num_workers=workers, collate_fn=list, worker_init_fn=outlast_signals
        ):
            yield from filter(None, faults)
            done, now = done + len(faults), time.monotonic()
            if sys.stderr.isatty() and (now - told > 0.5 or done == count):
                told = now
                speed = done / max(now - begun, 1e-3)
                print(f"\r{done:,} of {count:,} files, {speed:,.0f} a second", end="", file=sys.stderr, flush=True)
    if count and sys.stderr.isatty():
        print(file=sys.stderr)
