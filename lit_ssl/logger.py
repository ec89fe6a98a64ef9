"""What a run leaves behind about itself: its metrics, its configuration, and a summary of model and data."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lit_ssl.checkpoint import run_note

__all__ = ["MetricsLogger", "RunRecord", "newest_run"]


class _Rows(ExperimentWriter):
    """The writer of one metrics.csv: opens what a run before it left, and never leaves half a file."""

    def _check_log_dir_exists(self) -> None:  # asked at construction; Lightning deletes the file here
        self.metrics_keys, _ = self._read()

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        if not self._fs.isfile(self.metrics_file_path):
            return [], []
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            whole, _, _ = file.read().rpartition("\n")  # what is behind the last one was torn by a kill
        reader = csv.DictReader(whole.splitlines())
        return list(reader.fieldnames or ()), list(reader)

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        aside = str(Path(self.metrics_file_path).with_name(".metrics.csv.partial"))
        with self._fs.open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self._fs.mv(aside, self.metrics_file_path)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._replace(self._read()[1])

    def rewind(self, step: int, row: Mapping[str, Any] | None) -> None:
        header, found = self._read()
        kept = [entry for entry in found if (entry.get("step") or "").isdecimal() and int(entry["step"]) < step]
        # Under accumulation the row of a validation may have the same step: tell rows apart by what they hold.
        missing = row is not None and not any(
            int(entry["step"]) == row["step"] and all(entry.get(name) for name in row) for entry in kept
        )
        if row is not None and missing:
            kept.append({**row})
            self.metrics_keys = sorted({*header, *row})
        if self.metrics_keys:
            self._replace(kept)


class MetricsLogger(CSVLogger):
    """Lightning's CSVLogger, of which a resumed run goes on in the same file, without a gap and without repetition.

    Rows are on disk as soon as they are logged. A run that is resumed in the folder of the one before (same ``name``
    and ``version``) keeps the rows up to its checkpoint and logs the later ones anew; CSVLogger would delete the file.
    :class:`~lit_ssl.callbacks.ExactCheckpoint` tells it where that is.

    Args:
        save_dir: folder of all runs.
        name: folder below it.
        version: folder below that; a number stands for ``version_N``. None (default): the next free number.
        prefix: in front of metrics' names.
    """

    def __init__(
        self, save_dir: str | Path, name: str | None = "metrics", version: int | str | None = None, prefix: str = ""
    ) -> None:
        super().__init__(save_dir, name=name, version=version, prefix=prefix, flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> Any:
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Rows(log_dir=self.log_dir)
        return super().experiment

    @rank_zero_only
    def rewind(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Drop the rows of ``step`` and later.

        Args:
            step: the first one to be logged anew.
            row: that of the step before; added where a kill came before it was written.
        """
        self.experiment.rewind(step, row)


def newest_run(folder: Path, checkpoints: str | None = None) -> int | None:
    """Number of the newest ``version_N`` in ``folder`` that trained, whether or not it has saved a checkpoint yet.

    Where checkpoints are kept in a folder of their own, it is the one that they belong to.
    """
    paths = [path.parent for path in folder.glob("version_*/checkpoints")]
    if checkpoints is not None:
        paths = [folder / Path(run_note(Path(checkpoints).expanduser()).get("log_dir") or "none").name]
    found = [re.fullmatch(r"version_(\d+)", path.name) for path in paths if path.is_dir()]
    return max((int(match[1]) for match in found if match), default=None)


class RunRecord(SaveConfigCallback):
    """Saves ``config.yaml`` beside the metrics and hands the same, with a summary of model and data, to the loggers.

    The loggers receive ``config`` (the full configuration), ``model_summary`` (class, parameters, trainable ones,
    embedding length, backbone) and ``data_summary`` (class, image shape, statistics, number of images and classes).
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":  # a fit may still be refused, and must leave the record of the run before as it is
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self._log(trainer, {"config": config})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Networks are built by now, and a checkpoint to go on from is that of this run."""
        super().setup(trainer, pl_module, "fit")
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
