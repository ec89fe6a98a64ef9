"""A small run under a launcher, how far it has come, and what it ends with."""

import csv
import os
import sys
import time
from pathlib import Path

from lightning.pytorch import Callback

from lit_ssl.checkpoint import load

EPOCH = 40  # steps
RUN = ["--config", "method/simclr", "--config", "data/quickstart", "--config", "trainer/cpu"]
RUN += ["--model.backbone", "mlp", "--model.backbone_options", "{hidden: [64, 32]}", "--model.projector_hidden", "16"]
RUN += ["--model.projector_dim", "8", "--data.batch_size", "32", "--data.num_workers", "1"]
RUN += ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", str(EPOCH), "--trainer.limit_val_batches", "1"]
RUN += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false", "--trainer.strategy", "ddp"]
RUN += ["--trainer.enable_model_summary", "false", "--trainer.num_sanity_val_steps", "0", "--knn.max_bank", "64"]
RUN += ["--embedding_map.every_n_epochs", "9", "--augmented_views.every_n_epochs", "9"]
RUN += ["--nearest_neighbours.every_n_epochs", "9", "--trainer.callbacks+", "jobs.Paced"]


class Paced(Callback):
    """Makes steps slow enough to be hit in the middle of an epoch, and tells which process is which rank."""

    def on_train_start(self, trainer, pl_module):
        Path(trainer.default_root_dir, f"rank{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(0.04)


def environment(**more):
    """One thread a process, the installed command on the path, and :class:`Paced` to be imported."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(Path(__file__).parent), **more}


def wait_for(what, process=None, seconds=120, every=0.05):
    """What the function returns, as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert process is None or process.poll() is None, "the run has ended"
        time.sleep(every)
    raise TimeoutError(f"{what.__name__}: not in {seconds} s")


def rows(folder):
    """Of the folder's one metrics.csv, without the speed: [{name: value}]."""
    found = list(folder.rglob("metrics.csv"))
    if not found:
        return []
    (path,) = found
    with open(path, newline="") as file:
        table = [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)]
    return [row for row in table if row.get("step")]


def step(folder):
    return max((int(row["step"]) for row in rows(folder)), default=-1)


def ending(folder):
    """All that a run ends with, but for times and paths."""
    (path,) = folder.rglob("last.ckpt")
    state = load(path)
    probe = next(values for name, values in state["callbacks"].items() if name.startswith("OnlineLinearProbe"))
    return [state["global_step"], state["state_dict"], state["optimizer_states"], state["lr_schedulers"], probe]
