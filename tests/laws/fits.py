"""A row of fits in one process a rank, each as ``lit-ssl fit`` runs it: python fits.py FITS.json [double], or torchrun.

FITS.json maps folders to the command's arguments. An interpreter's start, with its imports, takes longer than a small
fit: all fits on a number of processes share one.
"""

import csv
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from lit_ssl.__main__ import main
from lit_ssl.distributed import gather, world_size

COMMON = ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
COMMON += ["--trainer.num_sanity_val_steps", "0", "--trainer.enable_model_summary", "false"]
COMMON += ["--probe.every_n_steps", "25", "--knn.every_n_epochs", "1000", "--spectrum.every_n_epochs", "1000"]


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


class FinalState(Callback):
    """Saves what a fit ends with, and the names of what is not the same on all ranks."""

    def on_train_end(self, trainer, pl_module):
        state = {name: whole(value.detach()) for name, value in pl_module.state_dict().items()}
        unlike = [name for name, value in state.items() if not all(torch.equal(x, value) for x in gather(value[None]))]
        parameters = dict(pl_module.named_parameters())
        sharded = [name for name, value in parameters.items() if isinstance(value, DTensor)]
        if trainer.is_global_zero:
            found = {"state": state, "unlike": unlike, "sharded": sharded, "parameters": [*parameters]}
            found |= {"world": world_size(), "steps": trainer.global_step}
            torch.save(found, Path(trainer.default_root_dir) / "final.pt")


def run(fits, processes=1, double=False):
    """Fit all, {folder: arguments}; returns {folder: (rows of metrics.csv, what FinalState saved)}.

    Fits in one process are shared out to two interpreters, side by side. ``double`` makes float64 torch's default, for
    strategies that have no 64-true.
    """
    rows = [*fits.items()]
    shares = [dict(share) for share in ((rows[0::2], rows[1::2]) if processes == 1 else (rows,)) if share]
    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(partial(run_in_a_row, processes=processes, double=double), shares))
    return {Path(folder): result(Path(folder)) for folder in fits}


def run_in_a_row(fits, processes, double):
    folders = [Path(folder) for folder in fits]
    for folder in folders:
        folder.mkdir(parents=True)
    listing = folders[0].parent / f"{folders[0].name}-and-others.json"
    listing.write_text(json.dumps({str(folder): [*map(str, arguments)] for folder, arguments in fits.items()}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else ()), __file__, str(listing), *["double"] * double]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def result(folder):
    (metrics,) = folder.rglob("metrics.csv")
    return list(csv.DictReader(metrics.open())), torch.load(folder / "final.pt", weights_only=True)


def values(rows, name):
    return [float(row[name]) for row in rows if row.get(name)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if "double" in sys.argv[2:]:
        torch.set_default_dtype(torch.float64)
    for folder, arguments in json.loads(Path(sys.argv[1]).read_text()).items():
        own = ["--trainer.default_root_dir", folder, "--trainer.callbacks+", "fits.FinalState"]
        code = main(["--traceback", "fit", *arguments, *COMMON, *own])
        if code:
            sys.exit(f"{folder}: exit code {code}")
