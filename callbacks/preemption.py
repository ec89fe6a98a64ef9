"""Giving way to a scheduler: save, stop, and go back to the queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from typing import Any, cast

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_ssl.checks import check_flag
from lit_ssl.distributed import largest

from .exact_checkpoint import ExactCheckpoint
from .single import SingleCallback

__all__ = ["Preempted", "Preemption"]

_SIGNALS = ("SIGTERM", "SIGUSR1")
_EX_TEMPFAIL = 75  # sysexits.h: try again later


class Preempted(SystemExit):
    """A signal stopped the run, after it had saved. The process's exit code is 75."""

    def __init__(self) -> None:
        super().__init__(_EX_TEMPFAIL)


class Preemption(SingleCallback):
    """On SIGTERM or SIGUSR1 saves, stops, and under Slurm puts the job back into the queue.

    The save is one of :class:`~lit_ssl.callbacks.ExactCheckpoint`, at the next instant from which training resumes
    exactly: most often the end of the step; else the end of the accumulated step, of the validation, or, where an epoch
    ends, of the next one's first step. Whichever process gets the signal, all of them stop at the same step. Then the
    run ends with exit code 75. The same call, with ``ckpt_path="last"``, begins the run and goes on with it::

        trainer = Trainer(callbacks=[ExactCheckpoint("runs/mine"), Preemption()])
        trainer.fit(SimCLR(), FashionMNIST("data"), ckpt_path="last")
        trainer.test(datamodule=trainer.datamodule)  # not reached by a run that gave way

    Under Slurm (in an array, too) process 0 calls ``scontrol requeue`` if the job is still running. Where the
    controller itself ends the job (``scancel``, ``scontrol requeue``, the time limit) that is left to it: what was
    cancelled stays so. Have a signal sent in good time before the limit, with ``#SBATCH --signal=USR1@120``, as the
    shipped job script does (``cluster/slurm.sbatch`` in the folder of :mod:`lit_ssl.configs`).

    This takes the place of what Lightning does on these signals, which saves at any instant whatever.

    Args:
        requeue: whether to put a Slurm job back into the queue; otherwise it just ends.

    Raises:
        Preempted: from ``trainer.fit``, when the run gives way; a ``SystemExit``.
        MisconfigurationException: there is no ExactCheckpoint in the run.
    """

    def __init__(self, requeue: bool = True) -> None:
        check_flag("requeue", requeue)
        self.requeue = requeue
        self._received = 0  # the signal's number, in this process
        self._agreed = 0  # in any
        self._savers: list[ExactCheckpoint] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._received = self._agreed = 0
        callbacks = cast(Any, trainer).callbacks
        self._savers = [callback for callback in callbacks if isinstance(callback, ExactCheckpoint)]
        if stage == "fit" and not self._savers:
            raise MisconfigurationException("Preemption saves with ExactCheckpoint, which is not in the run")
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # Lightning's own: two of them would both requeue

    # Lightning sets its own handlers behind on_fit_start, and restores those of before when the run ends.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def _listen(self, trainer: Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False) or threading.current_thread() is not threading.main_thread():
            return
        for name in _SIGNALS:
            if number := getattr(signal, name, None):  # Windows has no SIGUSR1
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._received = self._received or number

    # ModelCheckpoint and its kind come last among the callbacks: what is due here is saved in the same hook.

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._agree()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._agree()

    def _agree(self) -> None:
        """A collective call. It does not wait for the device."""
        if self._agreed:
            return
        self._agreed = largest(self._received)
        if self._agreed:
            for saver in self._savers:
                saver.save_soon()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._agreed or any(saver.save_is_due for saver in self._savers):
            return
        where = f"{signal.Signals(self._agreed).name}: saved step {trainer.global_step} in {self._savers[0].dirpath}"
        rank_zero_info(f"{where}; {self._what_next(trainer)}")
        trainer.strategy.barrier("preemption")  # a process that ends takes the others with it under some launchers
        raise Preempted

    def _what_next(self, trainer: Trainer) -> str:
        again = "the same command with --ckpt_path last goes on from there"
        job = _slurm_job()
        return again if job is None or not self.requeue or not trainer.is_global_zero else requeue(job)


def _slurm_job() -> str | None:
    """The job that this process belongs to; one task of an array by its number, for its id may be the whole array's."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Put a running Slurm job back into the queue; returns what came of it."""
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
        restarts = re.search(r" Restarts=(\d+) ", shown)
        if restarts and int(restarts[1]) > int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            return f"Slurm has put job {job} back into the queue, it goes on from there"
        if " JobState=RUNNING " not in shown:
            return f"Slurm is ending job {job}; sbatch the same script again to go on from there"
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        told = " ".join(str(getattr(error, "stderr", None) or error).split())
        return f"job {job} could not be requeued ({told}): sbatch the same script again to go on from there"
    return f"job {job} is back in the queue and goes on from there"


def _scontrol(*arguments: str) -> str:
    done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout
