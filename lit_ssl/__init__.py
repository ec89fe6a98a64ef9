"""Self-supervised learning methods for PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .methods import CLIP, MAE, MCL, VAE, Fusion, LeJEPA, MoCo, SimCLR
    from .module import SSLModule
    from .spec import ImageSpec

__version__ = "0.2.0"

__all__ = ["CLIP", "MAE", "MCL", "VAE", "Fusion", "ImageSpec", "LeJEPA", "MoCo", "SSLModule", "SimCLR", "__version__"]

_HOMES = {
    "CLIP": "methods",
    "MAE": "methods",
    "MCL": "methods",
    "VAE": "methods",
    "Fusion": "methods",
    "ImageSpec": "spec",
    "LeJEPA": "methods",
    "MoCo": "methods",
    "SSLModule": "module",
    "SimCLR": "methods",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``lit-ssl --help`` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
