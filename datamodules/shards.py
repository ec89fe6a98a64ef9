"""WebDataset's tar shards: every process scans them when it starts, and then reads them at random."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from .captions import Columns, Record
from .formats import endings

__all__ = ["expand", "read_shards"]


def expand(root: Path, patterns: Sequence[str]) -> list[str]:
    """The shards that WebDataset's brace patterns mean, such as ``train-{000000..000009}.tar``, relative to ``root``.

    Raises:
        FileNotFoundError: some are not there.
        ImportError: webdataset is not installed.
        ValueError: braces that are not closed.
    """
    expand_urls = _webdataset("shardlists").expand_urls
    try:
        names = [name for pattern in patterns for name in expand_urls(pattern)]
    except ValueError as error:
        raise ValueError(f"shards must be names or brace patterns, got {list(patterns)!r}: {error}") from error
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no shard {(root / missing[0]).absolute()} ({len(missing)} of {len(names)} are missing); say with "
            "--data.root and --data.shards where they are"
        )
    return names


def read_shards(root: Path, names: Sequence[str], columns: Columns) -> tuple[list[Record], list[str]]:
    """The samples of shards, in their order, and what was left out.

    A sample is what shares a name up to its first dot, as WebDataset has it. Captions are read now, while the shard
    passes by; of images only the place is noted.

    Args:
        root: folder of the shards.
        names: of uncompressed tar files.
        columns: the extensions of members; None as the ``image`` takes the first of any image format.

    Returns:
        Records, whose place is (shard, offset, length), and for each bad sample what names it and why it is bad.

    Raises:
        ValueError: a file that is no uncompressed tar file.
    """
    records: list[Record] = []
    bad: list[str] = []
    for shard, name in enumerate(names):
        with open(root / name, "rb") as file:
            for key, members in _samples(root / name, file, bad):
                found = _record(f"{name}/{key}", shard, file, members, columns)
                if isinstance(found, str):
                    bad.append(f"{name}/{key}: {found}")
                else:
                    records.append(found)
    return records, bad


def _webdataset(module: str) -> Any:
    try:
        from webdataset import shardlists, tariterators
    except ImportError as error:
        raise ImportError("shards need webdataset: pip install 'lit-ssl[webdataset]'") from error
    return {"shardlists": shardlists, "tariterators": tariterators}[module]


def _samples(path: Path, file: BinaryIO, bad: list[str]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The key of each sample, and its members by extension."""
    split = _webdataset("tariterators").base_plus_ext
    parts = ((*split(member.name), member) for member in _members(path, file, bad))
    for key, group in groupby(parts, key=lambda part: part[0]):
        if key is not None:
            yield key, {extension.lower(): member for _, extension, member in group}


def _members(path: Path, file: BinaryIO, bad: list[str]) -> Iterator[tarfile.TarInfo]:
    count = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                count += 1
                if member.isfile():
                    yield member
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("invalid header")
    except tarfile.ReadError as error:
        if not count:
            raise ValueError(
                f"{path} is no uncompressed tar file ({error}); a compressed one cannot be read at random: unpack it"
            ) from error
        bad.append(f"{path} breaks off behind {count} members ({error})")


def _record(
    name: str, shard: int, file: BinaryIO, members: dict[str, tarfile.TarInfo], columns: Columns
) -> Record | str:
    """The sample, or what is wrong with it."""

    def text(extension: str) -> str:
        member = members.get(extension)
        if member is None:
            return ""
        file.seek(member.offset_data)
        return file.read(member.size).decode().strip()

    images = [kind for kind in members if f".{kind}" in endings()] if columns.image is None else [columns.image]
    if not images or images[0] not in members:
        return f"no image among {', '.join(f'.{kind}' for kind in members)}"
    try:
        captions = tuple(caption for kind in columns.captions if (caption := text(kind)))
        label = text(columns.label) if columns.label is not None else ""
    except UnicodeDecodeError:
        return "a caption or label of bytes that are no UTF-8"
    if not captions:
        return f"the caption is empty (.{', .'.join(columns.captions)})"
    image = members[images[0]]
    return Record(f"{name}.{images[0]}", captions, label, "", (shard, image.offset_data, image.size))
