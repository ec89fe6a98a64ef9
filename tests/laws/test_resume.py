"""Law 2: a run that goes on from any of its checkpoints ends as the one that was never stopped."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from fits import COMMON
from lightning.pytorch import Callback, Trainer
from methods import METHODS
from states import same

from lit_ssl import SimCLR
from lit_ssl.__main__ import main
from lit_ssl.callbacks import ExactCheckpoint, OnlineLinearProbe
from lit_ssl.checkpoint import load
from lit_ssl.datamodules import Quickstart
from lit_ssl.logger import MetricsLogger

DROPOUT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.2, "drop_path_rate": 0.2},
}


def ending(folder):
    """What a run ends with: all state, and the rows of its metrics but for its speed."""
    state = load(folder / "checkpoints" / "last.ckpt")
    probe = next(values for name, values in state["callbacks"].items() if name.startswith("OnlineLinearProbe"))
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)]
    return [state["state_dict"], state["optimizer_states"], state["lr_schedulers"], state["loops"], probe], rows


def as_killed(whole, folder, checkpoint, late):
    """The folder of a run that was killed: long after it had saved this checkpoint, or right behind that."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint, folder / "checkpoints" / "last.ckpt")
    header, *lines = (whole / "metrics.csv").read_text().splitlines()
    loops = load(checkpoint)["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]["total"]
    if not late and batches["completed"] < batches["ready"]:  # Lightning logs this batch's row behind the save
        step = str(loops["epoch_loop.state_dict"]["_batches_that_stepped"])
        rows = csv.DictReader([header, *lines])
        logged = [entry["step"] == step and bool(entry["train/loss"]) for entry in rows]
        lines = lines[: logged.index(True)] if True in logged else lines
    (folder / "metrics.csv").write_text("\n".join([header, *lines, "1,torn"]))


class Watched(Callback):
    """Counts, so that a run which skips a validation or repeats an epoch's start is found out."""

    def __init__(self):
        self.counts = {"batches": 0, "validations": 0, "epochs": 0}

    def state_dict(self):
        return dict(self.counts)

    def load_state_dict(self, state_dict):
        self.counts = dict(state_dict)

    def on_train_epoch_start(self, trainer, pl_module):
        self.counts["epochs"] += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.counts["batches"] += 1

    def on_validation_epoch_end(self, trainer, pl_module):
        self.counts["validations"] += 1


def fit(folder, workers=0, ckpt_path=None, saving=None, **kwargs):
    saver = ExactCheckpoint(folder / "checkpoints", **(saving or {"every_n_train_steps": 1, "save_top_k": -1}))
    watched = Watched()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=MetricsLogger(folder.parent, name=None, version=folder.name),
        log_every_n_steps=2,
        callbacks=[OnlineLinearProbe(every_n_steps=3), watched, saver],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, "limit_train_batches": 7, "limit_val_batches": 1, **kwargs},
    )
    method = SimCLR(projector_hidden=16, projector_dim=8, warmup_epochs=1, **DROPOUT)
    trainer.fit(method, Quickstart(batch_size=16, num_workers=workers), ckpt_path=ckpt_path)
    return trainer, watched.counts


SETTINGS = {
    "plain": {},
    "workers": {"workers": 2},
    "accumulation": {"accumulate_grad_batches": 3},
    "validation_inside": {"val_check_interval": 2},
    "validation_across_epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "accumulation_and_validation": {"accumulate_grad_batches": 2, "val_check_interval": 3, "workers": 1},
    "steps": {"max_epochs": -1, "max_steps": 17},
    "no_validation": {"limit_val_batches": 0},
    "sparse_validation": {"check_val_every_n_epoch": 2},
}


FAST = ("plain", "accumulation_and_validation")


@pytest.mark.parametrize("setting", [pytest.param(s, marks=[] if s in FAST else pytest.mark.slow) for s in SETTINGS])
def test_a_run_resumes_exactly_from_its_checkpoints(setting, tmp_path):
    kwargs = SETTINGS[setting]
    trainer, counts = fit(tmp_path / "whole", **kwargs)
    expected, rows = ending(tmp_path / "whole")
    assert counts["batches"] == trainer.fit_loop.epoch_loop.batch_progress.total.completed >= 17
    assert sum("probe/train_acc" in row for row in rows) > 3
    checkpoints = sorted(
        (tmp_path / "whole" / "checkpoints").glob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime
    )
    assert len(checkpoints) >= 4
    for path in checkpoints[:-1]:  # the last one is that behind the fit
        done = load(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
        assert done % 7  # never where an epoch ends
        assert done % kwargs.get("accumulate_grad_batches", 1) == 0
    *inside, last = checkpoints
    for number, checkpoint in enumerate((inside[0], inside[1], inside[len(inside) // 2], inside[-1], last)):
        folder = tmp_path / f"killed-{number}"
        as_killed(tmp_path / "whole", folder, checkpoint, late=number % 2 == 0)
        torch.manual_seed(99)  # whatever the process drew before
        resumed, found = fit(folder, ckpt_path="last", **kwargs)
        assert resumed.global_step == trainer.global_step
        if checkpoint is last:
            continue  # the run had ended: nothing is trained, saved or logged
        assert found == counts
        state, found_rows = ending(folder)
        assert same(state, expected), checkpoint.name
        assert found_rows == rows, checkpoint.name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_exactly(method, tmp_path, monkeypatch):
    """As the command runs it, in the folder of the run that was killed."""
    monkeypatch.chdir(tmp_path)
    run = ["fit", *METHODS[method], *COMMON, "--data.batch_size=32", "--data.num_workers=0", "--trainer.max_epochs=2"]
    run += ["--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1", "--probe.every_n_steps=1"]
    run += ["--knn.max_bank=64", "--embedding_map.every_n_epochs=9"]
    saving = ["--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]
    assert main([*run, *saving, "--trainer.default_root_dir=whole"]) == 0
    (whole,) = Path("whole").glob("*/version_0")
    (checkpoint,) = whole.glob("checkpoints/*step=3.ckpt")
    folder = Path("killed") / whole.relative_to("whole")
    as_killed(whole, folder, checkpoint, late=True)
    assert main([*run, "--trainer.default_root_dir=killed", "--ckpt_path=last"]) == 0
    assert same(ending(folder), ending(whole))
