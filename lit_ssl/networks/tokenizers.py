"""Captions to tokens, on the host: bytes without any library, or a file of the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lit_ssl.checks import check_integer

__all__ = ["ByteTokenizer", "FileTokenizer", "Tokenizer", "build_tokenizer"]


class Tokenizer(Protocol):
    """Turns captions into ``{"ids": int64 (B, L), "mask": bool (B, L)}`` on the host.

    L is the longest caption's number of tokens, at most ``context_length``; the mask is True for tokens and False for
    padding behind them; each caption has at least one token.

    Attributes:
        size: of the vocabulary.
        source: what :func:`build_tokenizer` makes the same tokenizer of, without any file.
    """

    size: int
    source: str

    def __call__(self, text: Sequence[str]) -> dict[str, Tensor]: ...


class ByteTokenizer:
    """UTF-8 bytes between a beginning-of-text and an end-of-text token: any language, nothing to learn or to load.

    Tokens are 0 for padding, 1 for the beginning, 2 for the end and 3 + b for byte b. A caption that is too long is cut
    at the end of a character.

    Args:
        context_length: most tokens a caption, at least 3. Default 256; CLIP's 77 byte pairs are about 300 bytes.

    Raises:
        ValueError: ``context_length`` is no integer of at least 3.
    """

    size = 259
    source = "bytes"

    def __init__(self, context_length: int = 256) -> None:
        check_integer("context_length", context_length, 3)
        self.room = context_length - 2

    def __call__(self, text: Sequence[str]) -> dict[str, Tensor]:
        rows = [self._bytes(caption) for caption in text]
        width = max(map(len, rows), default=0) + 2
        if not rows:
            return {"ids": torch.zeros(0, width, dtype=torch.int64), "mask": torch.zeros(0, width, dtype=torch.bool)}
        block = bytearray(b"".join(b"\0" + row.ljust(width - 1, b"\0") for row in rows))
        ids = torch.frombuffer(block, dtype=torch.uint8).view(len(rows), width).to(torch.int64) + 3
        end, place = torch.tensor([[len(row) + 1] for row in rows]), torch.arange(width)
        mask = place <= end
        ids = ids.where(mask, 0)
        ids[:, 0] = 1
        return {"ids": ids.where(place != end, 2), "mask": mask}

    def _bytes(self, caption: str) -> bytes:
        row = caption.encode("utf-8", "replace")
        if len(row) <= self.room:
            return row
        cut = self.room
        while cut and row[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        return row[:cut]


class FileTokenizer:
    """A tokenizer of the Hugging Face ``tokenizers`` library (the extra ``text``), special tokens as it adds them.

    Args:
        source: path of its ``tokenizer.json``, or that file's content, which is what checkpoints keep.
        context_length: most tokens a caption.

    Raises:
        ImportError: ``tokenizers`` is not installed; names the extra.
        FileNotFoundError: there is no such file.
        ValueError: the file is no tokenizer, or ``context_length`` is no integer of at least 1.
    """

    def __init__(self, source: str, context_length: int = 256) -> None:
        check_integer("context_length", context_length)
        try:
            from tokenizers import Tokenizer as Rust
        except ImportError:
            raise ImportError(
                "a tokenizer file needs tokenizers, which is not installed: pip install 'lit-ssl[text]'"
            ) from None
        if not source.lstrip().startswith("{"):
            if not Path(source).expanduser().is_file():
                raise FileNotFoundError(f"tokenizer must be 'bytes' or a tokenizer.json; there is no file {source}")
            source = Path(source).expanduser().read_text(encoding="utf-8")
        try:
            self.rust = Rust.from_str(source)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"tokenizer must be 'bytes' or a tokenizer.json, which this is not: {error}") from error
        self.source = source
        self.rust.no_padding()
        self.rust.enable_truncation(context_length)
        self.size = max(self.rust.get_vocab().values(), default=0) + 1

    def __call__(self, text: Sequence[str]) -> dict[str, Tensor]:
        rows = [encoding.ids or [0] for encoding in self.rust.encode_batch(list(text))]
        width = max(map(len, rows), default=1)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64).view(-1, width)
        mask = torch.arange(width) < torch.tensor([len(row) for row in rows], dtype=torch.int64)[:, None]
        return {"ids": ids, "mask": mask}


def build_tokenizer(name: str, context_length: int = 256) -> Tokenizer:
    """``"bytes"``, or a :class:`FileTokenizer` from the path or content of a ``tokenizer.json``."""
    return ByteTokenizer(context_length) if name == "bytes" else FileTokenizer(name, context_length)
