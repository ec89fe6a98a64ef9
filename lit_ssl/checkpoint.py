"""Whole files or none: checkpoints on disk survive a kill at any instant, and a damaged one is told as such."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load

__all__ = ["RUN_NOTE", "CheckpointError", "WholeFileIO", "clean", "damage_of", "load", "newest_whole", "run_note"]

RUN_NOTE = "run.json"

_END = b"PK\x05\x06"  # begins a zip's last record, 22 bytes that end with the length of the comment behind them
_MARK = b"lit-ssl sha256 "
_SEAL = len(_MARK) + 64  # bytes of that comment: the mark, and the digest of all before it in hexadecimal
_PARTIAL = ".partial"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be saved, or that must not be loaded; the message says what there is instead."""


# Files


class _Hashed:
    """A file to write to, that hashes what passes, and keeps the error that torch.save would report as its own."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """The checkpoint as torch.save writes it, sealed by a checksum in the zip's comment, and on the disk for good."""
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(checkpoint, cast(Any, hashed))
        except Exception:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.seek(-2, os.SEEK_END)  # the digest is that of an empty comment's length
        file.write(_SEAL.to_bytes(2, "little") + _MARK + hashed.digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    with suppress(OSError):  # a file system without folders that can be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep(path: Path, previous: Path) -> None:
    """A second name for the file that is about to be replaced, which stays under its own until then."""
    link = previous.with_name(f".{previous.name}{_PARTIAL}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
        return
    try:
        os.replace(link, previous)
    finally:
        link.unlink(missing_ok=True)  # still there if the two were one file already, which a kill can leave


def damage_of(path: str | Path) -> str | None:
    """What is wrong with the file of a checkpoint; None if it is whole.

    A file that :class:`WholeFileIO` wrote is compared with its SHA-256, any other that ``torch.save`` wrote with the
    check sums of its zip records.
    """
    if os.path.isdir(path):
        return "it is a folder"
    if not os.path.isfile(path):  # a pipe would be read for ever
        return "it is no regular file, or a link to nothing"
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL))
        seal = file.read()
        if seal.startswith(_MARK) and len(seal) == _SEAL:
            file.seek(0)
            left, digest = size - _SEAL - 2, hashlib.sha256()
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            length = file.read(2)
            digest.update(b"\0\0")
            whole = seal == _MARK + digest.hexdigest().encode() and length == _SEAL.to_bytes(2, "little")
            return None if whole else "its checksum does not match"
    if seal[-22:-18] != _END or seal[-2:] != b"\0\0":
        return "it is cut short, or no checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
        return str(error)
    return None if record is None else f"its record {record} does not match its checksum"


def newest_whole(paths: Iterable[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The newest of these checkpoints that is whole, and what is wrong with the newer ones."""
    damaged: dict[Path, str] = {}
    for path in sorted(paths, key=lambda path: os.lstat(path).st_mtime_ns, reverse=True):
        sharded = (path / ".metadata").is_file()  # a folder that torch.distributed.checkpoint wrote
        damage = None if sharded else damage_of(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def run_note(folder: Path) -> dict[str, Any]:
    """What ExactCheckpoint noted beside the checkpoints: the ids of W&B runs, and the folder of the metrics."""
    try:
        return dict(json.loads((folder / RUN_NOTE).read_text()))
    except (OSError, ValueError):
        return {}


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Write what :func:`run_note` reads: a kill leaves the old one or the new one."""
    partial = folder / f".{RUN_NOTE}{_PARTIAL}"
    partial.write_text(json.dumps(note))
    os.replace(partial, folder / RUN_NOTE)


def clean(folder: Path) -> None:
    """Remove what saves left that were killed, and name a damaged ``last.ckpt`` so that no save takes it for whole."""
    for orphan in folder.glob(f".*.ckpt{_PARTIAL}"):
        orphan.unlink(missing_ok=True)
    last = folder / "last.ckpt"
    if os.path.lexists(last) and not (last / ".metadata").is_file() and damage_of(last):
        aside = last.with_suffix(".ckpt.damaged")
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        os.replace(last, aside)


def check_whole(path: str | os.PathLike[str]) -> None:
    """Compare the checksum of a checkpoint's file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged; the message names a whole one beside it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    if damage := damage_of(path):
        others = [other for other in path.parent.glob("*.ckpt") if other != path and other.is_file()]
        older = [other for other in others if other.stat().st_mtime_ns <= path.stat().st_mtime_ns]
        instead = "there is no whole one beside it"
        for which, candidates in (("before", older), ("beside", others)):
            whole, _ = newest_whole(candidates)
            if whole:
                instead = f"the one {which} it is whole: {whole}"
                break
        raise CheckpointError(f"{path} is not a whole checkpoint ({damage}); {instead}")


def load(path: str | os.PathLike[str], map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """A checkpoint from a local file, after its checksum has been compared, or from a URL. Never runs code from it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged (the message names a whole one beside it), or it would run code.
    """
    if "://" in str(path):
        return _load(str(path), map_location=map_location, weights_only=True)
    check_whole(path)
    try:
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|(?:class|function|global)s? [`']?([\w]+\.[\w.]+)", str(error))
        code = f" ({next(filter(None, found.groups()))})" if found else ""
        raise CheckpointError(
            f"{path} asks to run code when it is loaded{code}: refused. A checkpoint of this package holds tensors and "
            "plain values only; do not trust this file"
        ) from error


class WholeFileIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin that leaves whole files only, whenever the process or the machine dies.

    A file is written beside its place, flushed to the disk, and renamed; its SHA-256 is in the zip's comment, where
    ``torch.load`` and every zip tool pass it by. What ``last.ckpt`` held before stays as ``last-previous.ckpt``.
    Loading compares the checksum and is always ``weights_only=True``. Remote paths (``s3://…``) are written as
    Lightning writes them.

    :class:`~lit_ssl.callbacks.ExactCheckpoint` installs this plugin; ``Trainer(plugins=[WholeFileIO()])`` gives whole
    files to any other callback.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to (what was there stays as it was, nothing
            half-written is left); on loading, see :func:`load`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = path.with_name(f".{path.name}{_PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, partial)
            if path.stem == "last" and path.is_file():
                _keep(path, path.with_name(f"last-previous{path.suffix}"))
            os.replace(partial, path)
            _sync(path.parent)
        except BaseException as error:
            with suppress(OSError):
                partial.unlink()
            if not isinstance(error, OSError):
                raise
            before = "there is none before it"
            if kept := [p for p in (path, path.with_name(f"last-previous{path.suffix}")) if p.is_file()]:
                before = "the one saved before it stays as it was"
                before += "" if kept[0] == path else f", {kept[0]}"
            free = f", {_free(path.parent)} free" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise CheckpointError(
                f"could not save {path}: {error.strerror or error}{free}; {before}. Make room and go on with "
                "--ckpt_path last"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if not _is_local_file_protocol(path):
            return _load(path, map_location=map_location, weights_only=True)
        return load(path, map_location)


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
