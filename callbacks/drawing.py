"""What the pictures of a method's own making share: what they need, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

__all__ = ["labelled", "require"]

_DPI = 100


def require(callback: Any, pl_module: LightningModule) -> None:
    """Raises MisconfigurationException unless the module has the method that ``callback.needs`` names."""
    if not callable(getattr(pl_module, callback.needs, None)):
        raise MisconfigurationException(
            f"{type(callback).__name__} needs a method that has {callback.needs}(), got {type(pl_module).__name__}; "
            "leave the callback out"
        )


def labelled(picture: Tensor, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> np.ndarray:
    """A picture with names above its columns and to the left of its rows.

    Args:
        picture: uint8 (H, W, 3), columns of equal width and rows of equal height.
        columns, rows: a name each; none leaves no room for them.

    Returns:
        uint8 (H + 18, W + 36, 3), where both are named; the picture is its lower right corner, untouched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (height, width), top, left = picture.shape[:2], 18 * bool(columns), 36 * bool(rows)
    size = (left + width, top + height)
    inches = ((size[0] + 0.5) / _DPI, (size[1] + 0.5) / _DPI)  # cut to whole pixels
    figure = Figure(figsize=inches, dpi=_DPI, facecolor="white")
    for i, name in enumerate(columns):
        x = left + (i + 0.5) * width / len(columns)
        figure.text(x / size[0], 1 - top / 2 / size[1], name, ha="center", va="center", fontsize=7)
    for i, name in enumerate(rows):
        y = top + (i + 0.5) * height / len(rows)
        figure.text((left - 4) / size[0], 1 - y / size[1], name, ha="right", va="center", fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.array(canvas.buffer_rgba())[..., :3]
    image[top:, left:] = picture.numpy()
    return image
