"""Preemption: what signals do to a run, and what is said to Slurm. The laws under launchers: tests/laws."""

import os
import re
import signal
import subprocess
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lit_ssl import SimCLR
from lit_ssl.callbacks import ExactCheckpoint, Preempted, Preemption
from lit_ssl.callbacks.preemption import requeue
from lit_ssl.checkpoint import CheckpointError, load
from lit_ssl.datamodules import outlast_signals


class Signals(Callback):
    """Sends one to its own process, at a hook of a step."""

    def __init__(self, number, hook, step):
        def send(trainer, *args):
            if trainer.global_step == step and not trainer.sanity_checking:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


@pytest.fixture
def fit(make_trainer, tmp_path, tiny, loader, spec, monkeypatch):
    """Four batches an epoch; returns how it ended: an exit code, or None, and the trainer."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def run(*callbacks, ckpt_path="last", loader=loader, **kwargs):
        saver = ExactCheckpoint(tmp_path, every_n_train_steps=1000)
        defaults = {"max_epochs": 2, "limit_val_batches": 1, "enable_checkpointing": True}
        trainer = make_trainer(callbacks=[*callbacks, saver, Preemption()], **{**defaults, **kwargs})
        try:
            trainer.fit(SimCLR(spec=spec, **tiny), loader, loader, ckpt_path=ckpt_path)
        except Preempted as stop:
            return stop.code, trainer
        return None, trainer

    return run


@pytest.mark.parametrize(
    ("number", "hook", "step", "kwargs", "saved"),
    [
        (signal.SIGTERM, "on_train_batch_start", 1, {}, 2),
        (signal.SIGUSR1, "on_before_optimizer_step", 1, {}, 2),
        (signal.SIGUSR1, "on_train_batch_end", 3, {}, 3),  # by a callback before: seen in the same hook
        (signal.SIGTERM, "on_train_batch_start", 3, {}, 5),  # the last of an epoch, where no save is exact
        (signal.SIGTERM, "on_validation_batch_start", 2, {"val_check_interval": 2}, 2),
        (signal.SIGUSR1, "on_train_batch_start", 0, {"accumulate_grad_batches": 2}, 1),
        (signal.SIGTERM, "on_train_batch_start", 3, {"limit_val_batches": 0}, 5),
    ],
)
def test_a_signal_saves_and_stops_and_the_same_call_goes_on(fit, tmp_path, number, hook, step, kwargs, saved):
    before = signal.getsignal(number)
    code, _ = fit(Signals(number, hook, step), **kwargs)
    assert code == 75
    assert load(tmp_path / "last.ckpt")["global_step"] == saved
    assert signal.getsignal(number) == before
    code, trainer = fit(**kwargs)
    assert code is None
    assert trainer.global_step == 8 // kwargs.get("accumulate_grad_batches", 1)


def test_a_signal_in_the_last_step_lets_the_run_end(fit, tmp_path):
    code, trainer = fit(Signals(signal.SIGTERM, "on_train_batch_start", 7))
    assert code is None
    assert trainer.global_step == load(tmp_path / "last.ckpt")["global_step"] == 8


def test_workers_outlast_a_signal_to_the_whole_group(fit, images, tmp_path):
    class ToWorkers(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                for worker in trainer.train_dataloader._iterator._workers:  # as a scheduler does, not the run itself
                    for name in ("TERM", "USR1"):
                        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
                os.kill(os.getpid(), signal.SIGUSR1)

    workers = {"num_workers": 1, "persistent_workers": True, "worker_init_fn": outlast_signals}
    code, _ = fit(ToWorkers(), loader=DataLoader(images, batch_size=16, **workers), limit_val_batches=0)
    assert code == 75
    assert load(tmp_path / "last.ckpt")["global_step"] == 2


def test_it_needs_exact_checkpoints(make_trainer, tiny, loader, spec):
    with pytest.raises(MisconfigurationException, match="ExactCheckpoint, which is not in the run"):
        make_trainer(callbacks=[Preemption()]).fit(SimCLR(spec=spec, **tiny), loader)
    with pytest.raises(ValueError, match="requeue"):
        Preemption(requeue="yes")


def test_ranks_that_find_different_checkpoints_stop(tmp_path):
    saver = ExactCheckpoint(tmp_path)
    saver._found = ""
    strategy = SimpleNamespace(broadcast=lambda found: "runs/last.ckpt")
    with pytest.raises(CheckpointError, match=r"rank 3 finds no checkpoint, rank 0 runs/last.ckpt: .* all nodes share"):
        saver._check_alike(SimpleNamespace(strategy=strategy, global_rank=3))


# Slurm


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in that shows a job and notes what it is asked for."""

    def make(shown, code=0):
        script = tmp_path / "bin" / "scontrol"
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ $1 = show ] && echo "{shown}" && exit 0\n'
            f"echo slurm_requeue error: not permitted >&2\nexit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
        monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return make


@pytest.mark.parametrize(
    ("shown", "code", "told", "requeued"),
    [
        ("JobId=7 JobState=RUNNING Restarts=0 X", 0, "job 7 is back in the queue", True),
        ("JobId=7 JobState=COMPLETING Restarts=1 X", 0, "Slurm has put job 7 back into the queue", False),
        ("JobId=7 JobState=COMPLETING Restarts=0 X", 0, "Slurm is ending job 7; sbatch the same script", False),
        ("JobId=7 JobState=RUNNING Restarts=0 X", 1, r"could not be requeued \(slurm_requeue error: not perm", True),
    ],
    ids=["running", "requeued_already", "cancelled", "refused"],
)
def test_only_a_running_job_is_requeued(scontrol, shown, code, told, requeued):
    asked = scontrol(shown, code)
    assert re.search(told, requeue("7"))
    assert ("requeue 7" in asked()) is requeued


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_JOB_ID": "12"}, "requeue 12"),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 12_3"),
    ],
    ids=["job", "array"],
)
def test_a_run_requeues_its_own_job(fit, scontrol, monkeypatch, variables, expected):
    asked = scontrol("JobId=12 JobState=RUNNING Restarts=0 X")

    class Started(Signals):
        def on_train_start(self, trainer, pl_module):  # Lightning would look for srun's variables before
            for name, value in variables.items():
                monkeypatch.setenv(name, value)

    code, _ = fit(Started(signal.SIGUSR1, "on_train_batch_start", 1))
    assert code == 75
    assert asked()[-1] == expected


def test_a_missing_scontrol_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "job 7 could not be requeued" in requeue("7")
