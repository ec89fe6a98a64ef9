"""Embeddings on disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_ssl.datamodules import ImageFiles
from lit_ssl.distributed import gather, row_counts

from .pictures import run_folder

__all__ = ["SaveEmbeddings"]

_NAMES = ("embedding", "index", "label")
_AT_ONCE = 1 << 16  # rows that travel between ranks together


class SaveEmbeddings(BasePredictionWriter):
    """Writes what ``predict`` computes to one safetensors file, rows of all ranks in the order of the data set.

    The file holds ``embedding`` float32 (N, D), ``index`` int64 (N,) and ``label`` int64 (N,), -1 for none. Rows that a
    sampler padded or repeated are left out. It is written aside and renamed: a file of that name is always whole.

    Beside it, ``embeddings.csv`` has a line a row: ``row``, ``index``, ``label`` and ``name``, the path of the image
    file (of a shard and a member of it) where images were decoded from files, else empty. It is in UTF-8, and names in
    other bytes stand there as they are. It is replaced right before the embeddings.

    Args:
        output: path of the file; default ``embeddings.safetensors`` in the run's folder.

    Raises:
        ValueError: ``output`` is empty or a folder.
        TypeError: ``predict_step`` returned something else than a dict with these three tensors.
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__(write_interval="batch")
        if output is not None and (not str(output) or Path(output).is_dir()):
            raise ValueError(f"output must be the path of a file, got {output!r}")
        self.output = output
        self._rows: list[tuple[Tensor, ...]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(prediction, Mapping) or any(name not in prediction for name in _NAMES):
            raise TypeError(
                f"predict_step must return a dict with {', '.join(_NAMES)}, got {type(prediction).__name__}"
            )
        embedding, index, label = (prediction[name].detach().cpu() for name in _NAMES)
        if batch_indices is not None and len(batch_indices) == len(index) and bool((index < 0).all()):
            index = torch.tensor(list(batch_indices))  # a plain loader: Lightning knows which rows these are
        self._rows.append((embedding.float(), index, label))

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        path = Path(self.output) if self.output is not None else run_folder(trainer) / "embeddings.safetensors"
        rows, self._rows = self._rows, []
        counts = row_counts(sum(len(parts[1]) for parts in rows))
        if not sum(counts):
            return
        # a rank without rows takes part all the same
        rows = rows or [(torch.zeros(0, pl_module.num_features), *(torch.zeros(2, 0, dtype=torch.int64)))]
        own = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        columns: list[list[Tensor]] = [[] for _ in _NAMES]
        for start in range(0, max(counts), _AT_ONCE):
            share = [max(0, min(_AT_ONCE, n - start)) for n in counts]
            for column, values in zip(columns, own, strict=True):
                there = values[start : start + _AT_ONCE].to(pl_module.device)
                part = gather(there, share)
                if trainer.is_global_zero:
                    column.append(part.cpu())
        if trainer.is_global_zero:
            data: Any = getattr(trainer, "datamodule", None)
            files = getattr(data, "val_set", None)
            path_of = files.path if isinstance(files, ImageFiles) else None
            embedding, index, label = (torch.cat(column) for column in columns)
            self._write(path, embedding, index, label, path_of)
        trainer.strategy.barrier("embeddings")

    @staticmethod
    def _write(
        path: Path, embedding: Tensor, index: Tensor, label: Tensor, path_of: Callable[[int], Path] | None = None
    ) -> None:
        from safetensors.torch import save_file

        if bool((index < 0).all()):
            index = torch.arange(len(index))
        index, order = index.sort(stable=True)
        first = torch.ones(len(index), dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        keep = first & (index >= 0)
        order = order[keep]
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        save_file(
            {"embedding": embedding[order].contiguous(), "index": index[keep], "label": label[order].contiguous()},
            aside,
        )
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        rows = zip(index[keep].tolist(), label[order].tolist(), strict=True)
        listed = path.with_name(path.name + ".csv.tmp")
        with open(listed, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "index", "label", "name"])
            writer.writerows([row, i, given, path_of(i) if path_of else ""] for row, (i, given) in enumerate(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(listed, path.with_suffix(".csv"))
        os.replace(aside, path)
        print(f"{len(order):,} embeddings of length {embedding.shape[1]}: {path}", flush=True)
