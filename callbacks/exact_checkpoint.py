"""Checkpoints from which a run goes on bit by bit as if it had never stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ssl.checkpoint import CheckpointError, WholeFileIO, clean, newest_whole, run_note, write_note
from lit_ssl.distributed import global_count
from lit_ssl.fingerprint import as_names
from lit_ssl.run_lock import RunLock

__all__ = ["ExactCheckpoint"]


class ExactCheckpoint(ModelCheckpoint):
    """Saves at instants from which training resumes exactly, in the middle of an epoch too, and saves whole files only.

    ``last.ckpt`` is renewed at each save, ``last-previous.ckpt`` is the one before it. All that a Python run needs::

        trainer = Trainer(callbacks=[ExactCheckpoint("runs/mine", every_n_train_steps=50)])
        trainer.fit(SimCLR(), FashionMNIST("data"), ckpt_path="last")

    The first time this starts anew; after a kill it goes on from the newest whole file of the folder, with a warning if
    the newest of all is damaged. Exact are runs on a data module of this package; the order of a plain shuffled
    ``DataLoader`` is not in a checkpoint. For a metrics.csv without gaps and repetitions, log with
    :class:`~lit_ssl.logger.MetricsLogger`; a W&B run goes on under its id by itself.

    Lightning cannot resume exactly from every instant. A save that is due on an epoch's last batch, or between the
    batches of an accumulated step, is made behind the next batch that allows it; one that is due on a batch with a
    validation, behind the validation. The last save is made when training has ended.

    With a ``monitor`` the best weights are kept as well, as they were measured; resume from ``last.ckpt``, not from
    these.

    Args:
        dirpath: the folder; default ``checkpoints`` in that of the first logger.
        filename: a pattern such as ``{epoch}-{step}`` for files kept beside ``last.ckpt``; see ``save_top_k``.
        every_n_train_steps: save each time so many optimizer steps are done.
        every_n_epochs: save as often; the default, 1, where no other interval is given.
        train_time_interval: save when so much time has passed.
        monitor: name of the metric whose best values are kept, such as ``val/loss``; taken at validations.
        mode: whether the least (``min``) or the greatest (``max``) is best.
        save_top_k: how many files to keep beside ``last.ckpt``: with a ``monitor`` the best; without, 1 is the newest
            alone and -1 all.
        save_weights_only: leave out optimizer and callbacks; from such a file no run can resume.
        allow: names of arguments, such as ``batch_size``, that may differ from those of the run that saved the
            checkpoint; anything else that decides the numbers is refused. What was allowed is noted in the checkpoints
            that follow, with its step.

    Raises:
        MisconfigurationException: arguments that exclude each other.
        CheckpointError: saving failed, or no file of the folder is whole.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_weights_only: bool = False,
        allow: str | Sequence[str] = (),
    ) -> None:
        self.allow = as_names(allow)
        self._given_dirpath = None if dirpath is None else str(dirpath)
        alone = filename is None and monitor is None and save_top_k == 1
        super().__init__(
            dirpath if dirpath is None or "://" in str(dirpath) else Path(dirpath).expanduser(),
            "last" if alone else filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=not alone,
            save_weights_only=save_weights_only,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            enable_version_counter=False,  # a save repeated after a kill renews its file
        )
        self._lock: RunLock | None = None
        self._own_folders: set[str] = set()  # that runs of this very object have written to
        self._measured: Any = None  # the value of the monitor that was looked at last
        self._due = self._began = False
        self._row: dict[str, Any] | None = None  # of metrics, logged right behind the save that is being made
        self._pending_row: dict[str, Any] | None = None  # that of the checkpoint which was loaded
        self._found: str | None = None  # by this rank, for ckpt_path="last"; empty where there is none

    @property
    def state_key(self) -> str:
        """Several of a run, in folders of their own, are told apart."""
        return super().state_key + (f"{{'dirpath': {self._given_dirpath!r}}}" if self._given_dirpath else "")

    def save_soon(self) -> None:
        """Make a save due, at the next instant that allows an exact one; for signals and schedulers."""
        self._due = True

    @property
    def save_is_due(self) -> bool:
        """Whether a save waits for the next instant that allows an exact one."""
        return self._due

    # Starting and resuming

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with suppress(NotImplementedError):  # a strategy that writes its own
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeFileIO()
        self._due = self._began = False
        self._pending_row = None
        super().setup(trainer, pl_module, stage)
        if self._found is not None:
            self._check_alike(trainer)
        if stage == "fit" and trainer.is_global_zero and not self._idle(trainer) and "://" not in str(self.dirpath):
            folder = Path(str(self.dirpath))
            folder.mkdir(parents=True, exist_ok=True)  # also says that the folder around it is that of a fit
            self._release()
            self._lock = RunLock(folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check_free(self, trainer: Trainer, folder: Path) -> None:
        """A new run never takes the place of an older one's weights."""
        last = folder / "last.ckpt"
        resumed = trainer.ckpt_path is not None and Path(str(trainer.ckpt_path)).resolve().parent == folder.resolve()
        if not resumed and str(folder) not in self._own_folders and last.is_file():
            self._release()
            raise CheckpointError(
                f"{folder} holds the checkpoints of another run, which this one would replace: go on with that one "
                "(--ckpt_path last), or give this one a folder of its own (--checkpoint.dirpath; dirpath in Python)"
            )
        self._own_folders.add(str(folder))

    def _check_alike(self, trainer: Trainer) -> None:
        """Ranks look for themselves, when they cannot talk to each other yet. A collective call."""
        found, self._found = self._found, None
        first = trainer.strategy.broadcast(found)
        if global_count(int(found != first)):
            raise CheckpointError(
                f"ckpt_path last: rank {trainer.global_rank} finds {found or 'no checkpoint'}, rank 0 "
                f"{first or 'none'}: the run's folder must be on a file system that all nodes share (one that shows "
                "new files late may need a minute)"
            )

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What ``ckpt_path="last"`` chooses from: the newest whole file, if there is any."""
        resolved: Any = getattr(self, "_ModelCheckpoint__resolve_ckpt_dir")(trainer)  # noqa: B009 - mangled otherwise
        found = {Path(path) for path in super()._find_last_checkpoints(trainer)}
        if "://" in str(resolved):
            return {str(path) for path in found}
        _continue_wandb(trainer, Path(resolved))
        whole, damaged = newest_whole(found)
        told = ", ".join(f"{path} is damaged ({damage})" for path, damage in damaged.items())
        if whole is None and damaged:
            raise CheckpointError(f"ckpt_path last: {told}; remove what is damaged to start anew")
        if whole is None:
            rank_zero_info(f"ckpt_path last: no checkpoint in {resolved} yet, the run starts anew")
            self._found = ""
            return set()
        if damaged:
            rank_zero_warn(f"{told}; going on from the one before, {whole}")
        self._found = str(whole)
        return {self._found}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clean their folder, and note what belongs to these checkpoints and cannot be told from it."""
        runs = [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        log_dir = trainer.log_dir  # a collective call: every rank makes it
        folder = Path(str(self.dirpath))
        if trainer.is_global_zero and folder.is_dir() and not self._idle(trainer):
            self._check_free(trainer, folder)
            clean(folder)  # not earlier: what is loaded from may be damaged, and this names it so
        elsewhere = bool(trainer.loggers) and log_dir is not None and Path(log_dir).resolve() != folder.resolve().parent
        if trainer.is_global_zero and folder.is_dir() and (runs or elsewhere):
            write_note(folder, {"wandb": runs, "log_dir": log_dir})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["pending_row"] = self._row

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pending_row = checkpoint.get("pending_row")
        states = checkpoint.get("callbacks", {})
        own = [key for key in states if str(key).startswith(type(self).__qualname__)]
        if self.state_key not in states and len(own) == 1:  # the folder was moved, or not told apart yet
            states[self.state_key] = states[own[0]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_time_checked = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._began:
            return
        self._began = True
        for logger in trainer.loggers:  # here and not earlier the number of steps is what it was at the save
            if callable(rewind := getattr(logger, "rewind", None)):
                rewind(trainer.fit_loop.epoch_loop._batches_that_stepped, self._pending_row)

    # Saving

    @staticmethod
    def _idle(trainer: Trainer) -> bool:
        return (
            bool(getattr(trainer, "fast_dev_run", False))
            or trainer.state.fn != TrainerFn.FITTING
            or trainer.sanity_checking
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self._idle(trainer) or loop._should_accumulate():
            return
        self._due |= self._interval_passed(trainer)
        fetcher: Any = trainer.fit_loop._data_fetcher
        if self._due and not loop._is_training_done and not loop._should_check_val_fx(fetcher):
            self._row = self._row_of(trainer)
            self._save(trainer)
            self._row = None

    @staticmethod
    def _row_of(trainer: Trainer) -> dict[str, Any] | None:
        """What Lightning logs for this batch, right behind the save: a kill between the two must not lose it."""
        connector = trainer._logger_connector
        if not connector.should_update_logs or not (logged := connector.metrics["log"]):
            return None
        values = {name: float(value) for name, value in logged.items()}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        return {"epoch": trainer.current_epoch, **values, "step": step}

    def _interval_passed(self, trainer: Trainer) -> bool:
        steps, interval = self._every_n_train_steps, self._train_time_interval
        if interval is not None:
            passed = time.monotonic() - (self._last_time_checked or 0.0) >= interval.total_seconds()
            return bool(trainer.strategy.broadcast(passed))  # rank 0's clock
        return steps > 0 and trainer.global_step % steps == 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._idle(trainer):
            return
        self._due |= self._epoch_due(trainer)
        self._save_best(trainer)
        loop = trainer.fit_loop.epoch_loop
        if self._due and not loop._should_accumulate() and not loop._is_training_done:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._idle(trainer):
            return
        self._due |= self._epoch_due(trainer)
        if not trainer.enable_validation:
            self._save_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._idle(trainer):
            self._save(trainer)

    def _epoch_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _save_best(self, trainer: Trainer) -> None:
        if self.monitor is None or not (self._every_n_epochs == 0 or self._epoch_due(trainer)):
            return
        candidates = self._monitor_candidates(trainer)
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:  # measured every so many epochs only, or misspelt
            if self._measured is None:
                logged = ", ".join(sorted(trainer.callback_metrics))
                rank_zero_warn(f"monitor {self.monitor!r} has not been logged yet; logged are {logged}")
                self._measured = self.monitor
        elif value is not self._measured:  # else it is that of an earlier validation, and of other weights
            self._measured = value
            self._save_topk_checkpoint(trainer, candidates)

    def _save(self, trainer: Trainer) -> None:
        candidates = self._monitor_candidates(trainer)
        if self.monitor is None:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
        self._due = False
        self._last_time_checked = time.monotonic()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No save: an exception comes at an instant from which no run resumes exactly."""
        self._release()
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == TrainerFn.FITTING:
            step = self._last_global_step_saved
            saved = f"it was saved at step {step}" if step else "it was not saved yet"
            rank_zero_info(
                f"interrupted at step {trainer.global_step}; {saved}, in {self.dirpath}: the same command with "
                "--ckpt_path last goes on from there"
            )


def _continue_wandb(trainer: Trainer, folder: Path) -> None:
    """Give the loggers the ids of the runs that they go on with. They begin before a checkpoint is loaded."""
    loggers: list[Any] = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    for logger, run in zip(loggers, run_note(folder).get("wandb", ()), strict=False):
        if logger._experiment is None and logger._id is None:  # neither begun nor named by the user
            logger._id = run
            logger._wandb_init.update(id=run, resume="allow")
