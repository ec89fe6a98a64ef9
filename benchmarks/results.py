"""Figures of a long benchmark, kept in a file from the first one on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["Results"]


class Results:
    """What is measured: lists of entries by kind, each told on stderr. A file that holds some is gone on with.

    Args:
        path: of the file; with None nothing is kept.
        settings: all that figures depend on.
        kinds: of the entries.

    Raises:
        SystemExit: the file holds figures of other settings.
    """

    def __init__(self, path: str | None, settings: dict[str, Any], kinds: Iterable[str]) -> None:
        self.path = Path(path) if path else None
        settings = json.loads(json.dumps(settings))  # as a file has them: tuples are lists there
        self.kept: dict[str, Any] = {"settings": settings, **{kind: [] for kind in kinds}}
        if self.path is not None and self.path.exists():
            kept = json.loads(self.path.read_text())
            if kept["settings"] != settings:
                raise SystemExit(f"{path} holds figures of other settings: {kept['settings']}; these are {settings}")
            self.kept = kept

    def add(self, kind: str, entry: dict[str, Any]) -> None:
        self.kept[kind].append(entry)
        print(kind, json.dumps(entry), file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps(self.kept, indent=1) + "\n")

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """The entries that have these values."""
        return [entry for entry in self.kept[kind] if all(entry[key] == value for key, value in wanted.items())]

    def has(self, kind: str, **wanted: Any) -> bool:
        return bool(self.of(kind, **wanted))

    def best(self, kind: str, figure: str, **wanted: Any) -> dict[str, Any]:
        return max(self.of(kind, **wanted), key=lambda entry: entry[figure])
