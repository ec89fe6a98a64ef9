"""The table at the end: raw pixels, the untrained encoder and this run, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lit_ssl.checks import check_flag, check_integer
from lit_ssl.evaluation import Scores, evaluate, format_scores, summary
from lit_ssl.random import isolated, resolve_seed
from lit_ssl.spec import ImageSpec
from lit_ssl.views import clean

from .features import encode
from .pictures import run_folder
from .single import SingleCallback

__all__ = ["SummaryTable", "raw_pixels"]

_MOST_PIXELS = 4096


def raw_pixels(image: Tensor, spec: ImageSpec) -> Tensor:
    """The clean view as a vector: the baseline that an encoder has to beat.

    Args:
        image: uint8 (B, C, H, W).
        spec: size of the clean view; one of more than 4,096 values is first averaged down to fit into so many.

    Returns:
        float32 (B, at most 4096 where C is not larger).
    """
    x = clean(image, spec, torch.float32)
    values = x[0].numel()
    if values > _MOST_PIXELS:
        shrink = (_MOST_PIXELS / values) ** 0.5
        height, width = (max(1, int(side * shrink)) for side in x.shape[2:])
        x = adaptive_avg_pool2d(x, (height, width))
    return x.flatten(1)


class SummaryTable(SingleCallback):
    """Ends ``test``, and ``fit`` if asked, with a table on held-out images: kNN, linear probe, ten labels a class.

    Three rows, all through the one evaluation of ``lit_ssl.evaluation``: raw pixels, the encoder with its first
    weights, and this run's. It trains on the data module's labelled set and tests on its held-out one, both as clean
    images. The numbers also go to every logger and to ``summary.json`` in the run's folder, whose files are
    listed. Data without labels
    get one line that says so. Global random numbers, weights and modes are left as they were.

    Args:
        on_fit_end: act at the end of ``fit``, too.
        draws: of ten labels a class; at least 2, default 10.
        max_train: at most this many labelled images, chosen by the seed; default all.
        seed: of draws and folds; None takes that of ``seed_everything``, or 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, on_fit_end: bool = False, draws: int = 10, max_train: int | None = None, seed: int | None = None
    ) -> None:
        check_flag("on_fit_end", on_fit_end)
        check_integer("draws", draws, 2)
        check_integer("max_train", max_train, 10, optional=True)
        if seed is not None:
            resolve_seed(seed)
        self.after_fit, self.draws, self.max_train, self.seed = on_fit_end, draws, max_train, seed
        self.scores: dict[str, Scores] | None = None
        self._lines: list[str] = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures here, while the module is on its device; the table is printed when the progress bar is closed."""
        if self.after_fit:
            self._act(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._act(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        lines, self._lines = self._lines, []
        if lines and trainer.is_global_zero:
            print("\n" + "\n".join([*lines, *_paths(trainer)]), flush=True)

    def _act(self, trainer: Trainer, pl_module: Any) -> None:
        self.scores, self._lines = None, []
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = run_folder(trainer)
        datamodule: Any = getattr(trainer, "datamodule", None)
        train, held = (getattr(datamodule, name, None) for name in ("labelled_set", "val_set"))
        if train is None or held is None:
            what = (
                "a data module with labels" if datamodule is None else "labels" if train is None else "held-out images"
            )
            self._lines = [f"No table of accuracies: it needs {what}."]
            return
        seed = resolve_seed(self.seed)
        with isolated(seed, "summary"), torch.no_grad():
            encoders = {
                "raw_pixels": lambda image: raw_pixels(image, pl_module.spec),
                "untrained": pl_module.untrained().represent,
                "trained": pl_module.represent,
            }
            place = pl_module.device
            x, y = encode(datamodule, train, encoders, device=place, max_rows=self.max_train, seed=seed)
            held_x, held_y = encode(datamodule, held, encoders, device=place)
            if trainer.is_global_zero:
                self._lines = self._table(x, y, held_x, held_y, seed, folder)
                self._log(trainer)
        trainer.strategy.barrier("summary table")

    def _log(self, trainer: Trainer) -> None:
        """The numbers go to every logger, as ``eval/<protocol>/<encoder>/<metric>``, and to W&B as a table besides."""
        if self.scores is None:
            return
        values = {}
        for encoder, row in summary(self.scores).items():
            for name, value in row.items():
                protocol = name.removesuffix("_se")
                metric = "accuracy" if protocol == name else "standard_error"
                values[f"eval/{protocol}/{encoder}/{metric}"] = value
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
            if isinstance(logger, WandbLogger):
                rows = summary(self.scores)
                columns = ["encoder", *next(iter(rows.values()))]
                logger.log_table("eval/accuracy", columns, [[name, *row.values()] for name, row in rows.items()])

    def _table(
        self, x: dict[str, Tensor], y: Tensor, held_x: dict[str, Tensor], held_y: Tensor, seed: int, folder: Path
    ) -> list[str]:
        known = int((held_y >= 0).sum())
        if not known or not bool((y >= 0).any()):
            return ["No table of accuracies: it needs labels."]
        if not all(bool(torch.isfinite(rows).all()) for rows in (*x.values(), *held_x.values())):
            return ["No table of accuracies: some embeddings are nan or infinite, the run has diverged."]
        scores = {name: evaluate(x[name], y, held_x[name], held_y, draws=self.draws, seed=seed) for name in x}
        self.scores = scores
        path = folder / "summary.json"
        _write_json(path, summary(scores))
        title = f"Accuracy on {known:,} held-out images, {int((y >= 0).sum()):,} to train on:"
        return [title, "", format_scores(scores), "", f"summary     {path}"]


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _paths(trainer: Trainer) -> list[str]:
    """The files of the run that exist, a line each."""
    saved = trainer.checkpoint_callback
    checkpoint = getattr(saved, "best_model_path", "") or getattr(saved, "last_model_path", "") or trainer.ckpt_path
    folders = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    folder = folders[0] if folders else Path(trainer.default_root_dir)
    found = {"checkpoint": checkpoint, "metrics": folder / "metrics.csv", "pictures": folder / "pictures"}
    return [f"{name:<11} {path}" for name, path in found.items() if path and Path(path).exists()]
