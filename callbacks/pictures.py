"""Pictures of a run: a file each, and media of every logger that shows media."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

__all__ = ["run_folder", "save_picture"]


def run_folder(trainer: Trainer) -> Path:
    """Where the run's files go: its first logger's folder, else ``default_root_dir``. A collective call."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def save_picture(trainer: Trainer, name: str, make: Callable[[], Any]) -> Path | None:
    """Writes ``<run folder>/pictures/<name>-step<N>.png`` and sends it to W&B and TensorBoard as ``pictures/<name>``.

    Every rank must call it; rank 0 makes and saves the picture. Nothing is written in ``fast_dev_run``.

    Args:
        trainer: of the run.
        name: of the picture, a file name without its ending.
        make: returns a matplotlib Figure, or an image as a uint8 array or tensor (H, W, 3).

    Returns:
        the file, on rank 0.
    """
    folder = run_folder(trainer) / "pictures"
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return None
    image = _pixels(make())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-step{trainer.global_step}.png"
    aside = path.with_suffix(".tmp")
    from matplotlib.image import imsave

    imsave(aside, image, format="png")
    os.replace(aside, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [image], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"pictures/{name}", image, trainer.global_step, dataformats="HWC")
    return path


def _pixels(picture: Any) -> np.ndarray:
    if hasattr(picture, "savefig"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(picture)  # not pyplot, whose figures are global and whose backend may want a screen
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
    image = np.ascontiguousarray(picture.cpu().numpy() if hasattr(picture, "cpu") else picture)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture must be a uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return image
