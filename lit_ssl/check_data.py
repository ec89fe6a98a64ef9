"""``lit-ssl check``: every file of a data set is decoded once, and all that are broken are listed together."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lit_ssl.cli import Parser
from lit_ssl.datamodules.image_files import ImageFiles
from lit_ssl.layers import Layer, find_own_classes, with_classes_first
from lit_ssl.messages import UserError, line_of, quiet
from lit_ssl.printable import printable

__all__ = ["check"]


class _Faults(Dataset[str]):
    """What is wrong with each file of a data set; empty for nothing."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> str:
        return self.files.fault(i) or ""


def check(args: Sequence[str]) -> int:
    """Compose the data as ``fit`` does, decode each file, and print every broken one with its reason.

    Args:
        args: ``check`` and flags: layers of data, ``--data.…``.

    Returns:
        The exit code: 0 where nothing is broken, else 2.

    Raises:
        UserError: a mistake in the arguments, or data that are not there.
    """
    with quiet():
        find_own_classes(args)
        parser = Parser(prog="lit-ssl check", description="decode every file of a data set and list the broken ones")
        parser.add_argument("-c", "--config", action=Layer, metavar="LAYER", help="a file or a shipped layer's name")
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
        config = parser.parse_args(with_classes_first(args)[1:])
        if config.get("data") is None:
            raise UserError("no data: lit-ssl check --config data/image_folder --data.root DIR")
        if "max_corrupt" in config.data.init_args:
            config.data.init_args.max_corrupt = sys.maxsize  # all of them are told here
        try:
            data: Any = parser.instantiate_classes(config).data
            data.setup()
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise UserError(line_of(error)) from error
        print(data.describe())
        broken = [fault for name in ("train_set", "val_set") for fault in _faults(getattr(data, name), data)]
        for fault in broken:
            print(printable(fault))
        print(f"{len(broken):,} broken" if broken else "nothing is broken")
    return 2 if broken else 0


def _faults(files: Any, data: Any) -> list[str]:
    if not isinstance(files, ImageFiles):
        return []  # images in memory were read in full by setup
    loader = DataLoader(_Faults(files), batch_size=64, num_workers=data._workers(), collate_fn=list)
    found, done, begun, told = [], 0, time.monotonic(), 0.0
    for faults in loader:
        found += [fault for fault in faults if fault]
        done += len(faults)
        if sys.stderr.isatty() and time.monotonic() - told > 0.5:
            told = time.monotonic()
            print(f"\r{done:,} of {len(files):,} files, {done / (told - begun):,.0f} a second", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found
