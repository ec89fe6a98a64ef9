"""Trains on argv[2] processes under every callback; rank 0 leaves its metrics in argv[1]/metrics.json."""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lit_ssl import SimCLR
from lit_ssl.callbacks import (
    AugmentedViews,
    EmbeddingMap,
    NearestNeighbours,
    OnlineKNN,
    OnlineLinearProbe,
    RepresentationMonitor,
    SaveEmbeddings,
    SummaryTable,
)


def stripes(**kwargs):
    spec = importlib.util.spec_from_file_location("stripes", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Stripes("apart", **kwargs)


def main(folder, devices):
    torch.set_num_threads(1)
    probe = OnlineLinearProbe(every_n_steps=1, batch_size=16)
    watchers = [
        probe,
        OnlineKNN(),
        RepresentationMonitor(max_samples=200),
        AugmentedViews(),
        EmbeddingMap(),
        NearestNeighbours(),
        SummaryTable(on_fit_end=True, draws=2),
        SaveEmbeddings(),
    ]
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=watchers,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = stripes(batch_size=16 // devices)
    method = SimCLR(backbone="mlp", backbone_options={"hidden": (32, 16)}, warmup_epochs=0, lr=1e-4)
    trainer.fit(method, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.predict(method, datamodule=data, return_predictions=False)
    torch.save(probe.state_dict(), f"{folder}/probe-{trainer.global_rank}.pt")
    if trainer.is_global_zero:
        Path(folder, "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
