"""Two processes, of which only rank 1 sees an infinite loss, its gradient finite; each leaves what it found."""

import math
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from watch_ranks import stripes

from lit_ssl import SimCLR
from lit_ssl.callbacks import HealthGuard, NonFiniteError


class Mined(SimCLR):
    def __init__(self, at=0, **kwargs):
        super().__init__(**kwargs)
        self.at = at

    def loss(self, batch):
        losses = super().loss(batch)
        bad = self.training and self.global_step == self.at and self.trainer.global_rank == 1
        return {"loss": losses["loss"] + (math.inf if bad else 0.0)}


class Keep(Callback):
    indices: torch.Tensor

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.indices = trainer.strategy.all_gather(batch["index"]).flatten()


def fit(folder, at, guard):
    keep = Keep()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        callbacks=[keep, guard],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Mined(at, backbone="mlp", backbone_options={"hidden": (32, 16)}, warmup_epochs=0)
    try:
        trainer.fit(module, datamodule=stripes(batch_size=8))
    except NonFiniteError as error:
        return trainer, module, keep, str(error)
    return trainer, module, keep, ""


def main(folder):
    torch.set_num_threads(1)
    guard = HealthGuard("skip")
    trainer, module, _, _ = fit(folder, 2, guard)
    found = {"skipped": guard.skipped, "weights": dict(module.state_dict())}
    _, _, keep, said = fit(folder, 1, HealthGuard())
    found |= {"said": said, "indices": sorted(keep.indices.tolist())}
    torch.save(found, Path(folder) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
