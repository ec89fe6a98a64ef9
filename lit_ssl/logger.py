"""What a run leaves behind about itself: its configuration, and a summary of model and data, in every logger."""

from __future__ import annotations

from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

__all__ = ["RunRecord"]


class RunRecord(SaveConfigCallback):
    """Saves ``config.yaml`` beside the metrics and hands the same, with a summary of model and data, to the loggers.

    The loggers receive ``config`` (the full configuration), ``model_summary`` (class, parameters, trainable ones,
    embedding length, backbone) and ``data_summary`` (class, image shape, statistics, number of images and classes).
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self._log(trainer, {"config": config})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Networks are built by now."""
        if trainer.is_global_zero:
            summary = {"model_summary": _model(pl_module), "data_summary": _data(trainer)}
            self._log(trainer, summary)

    @staticmethod
    def _log(trainer: Trainer, entries: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(entries)


def _model(module: LightningModule) -> dict[str, Any]:
    parameters = list(module.parameters())
    backbone = getattr(module, "backbone", None)
    return {
        "class": type(module).__name__,
        "backbone": type(backbone).__name__,
        "embedding": getattr(module, "num_features", None),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "backbone_parameters": sum(p.numel() for p in backbone.parameters()) if backbone is not None else None,
    }


def _data(trainer: Trainer) -> dict[str, Any]:
    data: Any = getattr(trainer, "datamodule", None)
    summary: dict[str, Any] = {"class": type(data).__name__, "batch_size": getattr(data, "batch_size", None)}
    if (spec := getattr(data, "spec", None)) is not None:
        summary |= spec.to_dict()
    for name in ("train_set", "val_set", "labelled_set"):
        if (images := getattr(data, name, None)) is not None:
            summary[name.replace("_set", "_images")] = len(images)
    summary["classes"] = getattr(data, "num_classes", None)
    return summary
