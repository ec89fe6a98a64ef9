"""Which files are images, and how they are opened: regular files only, by the decoders of a closed list."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, ImageFile, features

from lit_ssl.printable import printable_name

__all__ = ["EXTENSIONS", "HEIF", "endings", "find_images", "left_out_line", "open_image", "split_folders"]

# What Pillow decodes by itself. Not among them: formats that start another program (EPS), that hold other files or
# several pictures (PSD, PDF), that any bytes may pass for (TGA), or icons.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_AVIF = [".avif"] if "avif" in features.modules and features.check("avif") else []
_BITMAPS = [".bmp", ".dib", ".gif", ".apng", ".png", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
_JPEG = [".jfif", ".jp2", ".j2k", ".jpe", ".jpeg", ".jpg", ".jpx"]

EXTENSIONS = tuple(sorted(_AVIF + _BITMAPS + _JPEG))
"""Endings of files that are images, in lower case."""

HEIF = (".heic", ".heif")
"""Endings of files that are images where ``pillow-heif`` is installed."""


@cache
def _formats() -> list[str]:
    Image.init()  # registers all that Pillow knows; what is not asked for is never tried
    return [name for name in _FORMATS if name in Image.OPEN]


@cache
def _heif() -> tuple[str, ...]:
    """The format's name, if ``pillow-heif`` (the extra ``heic``) is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return ()
    register_heif_opener()
    return ("HEIF",)


def endings() -> tuple[str, ...]:
    """Endings of the files that can be read here, in lower case: :data:`EXTENSIONS`, and :data:`HEIF` if installed."""
    return EXTENSIONS + (HEIF if _heif() else ())


def open_image(file: str | os.PathLike[str] | BinaryIO) -> ImageFile.ImageFile:
    """An image of which no pixel has been decoded yet.

    Args:
        file: its path, or the open file. What it is, its bytes say; formats are those of :data:`EXTENSIONS` alone, and
            HEIC where ``pillow-heif`` is installed.

    Raises:
        OSError: it is no regular file (a pipe would block for ever), or none of these formats.
        PIL.Image.DecompressionBombError: it has more than 178,956,970 pixels, as Pillow has it.
    """
    if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("it is no regular file")
    return Image.open(file, formats=[*_formats(), *_heif()])


def find_images(root: Path, left_out: Counter[str] | None = None) -> list[str]:
    """Paths of all image files below ``root``, relative to it with forward slashes, sorted.

    Hidden files and folders, files with other extensions than :data:`EXTENSIONS` (in any case) and what is no regular
    file are left out. Links are followed, but not in circles.

    Args:
        root: the folder.
        left_out: counts what is left out and not hidden, by its ending.
    """
    readable = endings()

    def walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                kind = _kind(entry)
                if kind == "folder":
                    yield from walk(entry.path, f"{prefix}{entry.name}/", above | {real})
                    continue
                regular = kind == "file"
                if regular and entry.name.lower().endswith(readable):
                    yield prefix + entry.name
                elif left_out is not None:
                    ending = os.path.splitext(entry.name)[1].lower() if regular else "no regular file"
                    left_out[ending or "without an ending"] += 1

    return sorted(walk(str(root), "", frozenset()))


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    """What an entry of a folder is, links followed; the folder itself tells, at no cost, for all that is no link."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link that leads to itself, or to where nobody may look
        return "other"


def split_folders(root: Path, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Sub-folders of ``root`` that are called by one of ``names`` in any case, and what else is there.

    Args:
        root: a folder; nothing is found where it is none.
        names: in lower case. Of two folders that differ in case alone the one in lower case is taken.

    Returns:
        What each such folder is called, by name; other folders and images directly in ``root``, sorted.
    """
    if not root.is_dir():
        return {}, []
    with os.scandir(root) as there:
        entries = [entry for entry in there if not entry.name.startswith(".")]
    called = sorted(entry.name for entry in entries if entry.name.lower() in names and _kind(entry) == "folder")
    found = {name.lower(): name for name in called}
    if not found:
        return {}, []
    others = [e.name for e in entries if e.name.lower().endswith(endings()) or _kind(e) == "folder"]
    return found, sorted(set(others) - set(found.values()))


def left_out_line(left_out: Counter[str]) -> str:
    """What was left out, most of it first, and what would read it; empty for nothing."""
    if not left_out:
        return ""
    parts = []
    for ending, count in left_out.most_common(6):
        hint = " (pip install 'lit-ssl[heic]')" if ending in HEIF else ""
        hint = " (this Pillow cannot read it)" if ending == ".avif" else hint
        parts.append(f"{count:,} {printable_name(ending)}{hint}")
    if len(left_out) > 6:
        parts.append("others")
    return f"left out: {', '.join(parts)}"
