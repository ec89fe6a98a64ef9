"""Law 1: with the same global batch, one process and two give the same losses and weights, up to float error."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS = 20
CONV = ["--model.backbone", "convnet", "--model.backbone_options", "{width: 8, stages: 2, stem_stride: 2}"]
VIT = ["--model.backbone", "vit_tiny_patch16_224"]
VIT += ["--model.backbone_options", "{embed_dim: 32, depth: 2, num_heads: 2}"]
PROJECTOR = ["--model.projector_hidden", "32", "--model.projector_dim", "16"]
DECODER = ["--model.decoder_dim", "16", "--model.decoder_depth", "1", "--model.decoder_heads", "2"]
QUICKSTART = ["--config", "data/quickstart"]
SHAPES = ["--config", "data/captioned_shapes", "--data.train_size", "2048", "--data.val_size", "256"]
TEXT = ["--model.text_options", "{width: 32, depth: 1, heads: 2}"]
METHODS = {
    "simclr": ["--config", "method/simclr", *CONV, *PROJECTOR],
    "simclr_hard": ["--config", "method/simclr_hard", *CONV, *PROJECTOR],
    "moco": ["--config", "method/moco", "--model.queue_size", "256", *CONV, *PROJECTOR],
    "moco_v3": ["--config", "method/moco_v3", *CONV, *PROJECTOR],
    "mae": ["--config", "method/mae", *VIT, *DECODER],
    "mae_convnet": ["--config", "method/mae", *CONV, "--model.mask_fill", "noise"],
    "mcl": ["--config", "method/mcl", *VIT, *PROJECTOR],
    "mcl_independent": ["--config", "method/mcl", "--model.mask_mode", "independent", *VIT, *PROJECTOR],
    "fusion": ["--config", "method/fusion", *VIT, *PROJECTOR, *DECODER],
    "vae": ["--config", "method/vae", *CONV],
    "lejepa": ["--config", "method/lejepa", *VIT, *PROJECTOR],
    "clip": ["--config", "method/clip", *VIT, *TEXT],
    "siglip": ["--config", "method/siglip", *VIT, *TEXT],
}


def fit(folder, method, processes):
    data = SHAPES if method in ("clip", "siglip") else QUICKSTART
    run = [*METHODS[method], *data, "--data.batch_size", str(64 // processes)]
    run += ["--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--trainer.precision", "64-true"]
    run += ["--trainer.strategy", "ddp" if processes > 1 else "auto", "--trainer.max_epochs", "1"]
    run += ["--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "4"]
    run += ["--trainer.log_every_n_steps", "1", "--trainer.default_root_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    binary = Path(sys.executable).parent / "lit-ssl"
    done = subprocess.run(
        [binary, "fit", *run], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = folder.rglob("metrics.csv")
    (checkpoint,) = folder.rglob("last.ckpt")
    rows = list(csv.DictReader(metrics.open()))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    (held_out,) = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    return losses, held_out, torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(method, tmp_path):
    results = []
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        results.append(fit(folder, method, processes))
    (one, held_one, weights_one), (two, held_two, weights_two) = results
    assert len(one) == len(two) == STEPS
    assert len({round(loss, 6) for loss in one}) > STEPS // 2  # it does train
    assert two == pytest.approx(one, rel=1e-8)
    assert held_two == pytest.approx(held_one, rel=1e-8)
    assert weights_one.keys() == weights_two.keys()
    for name, weight in weights_one.items():
        torch.testing.assert_close(weights_two[name], weight, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
