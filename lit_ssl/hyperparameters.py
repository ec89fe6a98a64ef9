"""Arguments as a checkpoint stores them: plain values, which load without unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import lit_ssl.views
from lit_ssl.spec import ImageSpec

__all__ = ["to_plain", "views_from"]


def to_plain(value: Any) -> Any:
    """Specs and this package's views as dicts of plain values; views of one's own, which would need code, as None."""
    if isinstance(value, ImageSpec):
        return value.to_dict()
    if not callable(value):
        return value
    name = type(value).__name__
    if is_dataclass(value) and not isinstance(value, type) and type(value) is getattr(lit_ssl.views, name, None):
        return {"class_path": f"lit_ssl.views.{name}", "init_args": asdict(value)}
    return None


def views_from(value: Any) -> Any:
    """The views that :func:`to_plain` wrote, or ``value`` itself."""
    if not isinstance(value, Mapping):
        return value
    name = str(value["class_path"]).rpartition(".")[2]
    if name not in lit_ssl.views.__all__:
        raise ValueError(f"views must be one of lit_ssl.views, got {value['class_path']!r}; pass views=... to load it")
    return getattr(lit_ssl.views, name)(**value.get("init_args", {}))
