"""Text from outside, such as the name of a file, on its way to a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["printable", "printable_name"]


def printable(text: str) -> str:
    """``text`` with control characters as escapes: those that move a cursor, and those that turn the direction of text.

    Line breaks and tabs stay; bytes that are no UTF-8 (surrogates of ``os.fsdecode``) become escapes, too.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else c.encode("unicode_escape").decode()
        for c in text
    )


def printable_name(text: str) -> str:
    """As :func:`printable`, line breaks and tabs, too: a name that holds one would pass for another line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
