"""ExactCheckpoint: when it saves, what it keeps, and what ``ckpt_path="last"`` finds. The law itself: tests/laws."""

import errno
import os

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_ssl import SimCLR
from lit_ssl.callbacks import ExactCheckpoint
from lit_ssl.checkpoint import CheckpointError, load
from lit_ssl.logger import MetricsLogger, newest_run


@pytest.fixture
def fit(make_trainer, tmp_path, tiny, loader, spec):
    """Four batches an epoch, of which a validation sees the first."""

    def run(saver, ckpt_path=None, **kwargs):
        defaults = {"max_epochs": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        trainer = make_trainer(enable_checkpointing=True, callbacks=[saver], **{**defaults, **kwargs})
        trainer.fit(SimCLR(spec=spec, **tiny), loader, loader, ckpt_path=ckpt_path)
        return trainer

    return run


def steps(folder):
    return sorted(load(path)["global_step"] for path in folder.glob("*.ckpt"))


@pytest.mark.parametrize(
    ("saving", "running", "saved"),
    [
        ({}, {}, [5, 8]),  # the first epoch's save, a batch later; the end
        ({"every_n_train_steps": 3}, {}, [3, 6, 8]),
        ({"every_n_train_steps": 4}, {}, [5, 8]),  # 4 and 8 end epochs
        ({"every_n_train_steps": 4}, {"max_steps": 7, "max_epochs": -1}, [5, 7]),
        ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 2}, [1, 3, 4]),  # 2 ends an epoch
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [9, 17, 20]),
        ({}, {"val_check_interval": 2}, [2, 5, 6, 8]),
        ({}, {"limit_val_batches": 0}, [5, 8]),
    ],
)
def test_when_it_saves(fit, tmp_path, saving, running, saved):
    fit(ExactCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **saving), **running)
    found = sorted(int(path.stem.partition("=")[2]) for path in tmp_path.glob("step=*.ckpt"))
    assert found == saved
    assert load(tmp_path / "last.ckpt")["global_step"] == saved[-1]


def test_it_leaves_two_generations_and_nothing_else(fit, tmp_path):
    (tmp_path / ".last.ckpt.partial").write_bytes(b"of a save that was killed")
    saver = ExactCheckpoint(tmp_path, every_n_train_steps=3)
    fit(saver)
    assert sorted(os.listdir(tmp_path)) == ["last-previous.ckpt", "last.ckpt"]
    assert steps(tmp_path) == [6, 8]
    assert saver.best_model_path == str(tmp_path / "last.ckpt")


def test_the_best_are_kept_as_they_were_measured(fit, tmp_path):
    fit(ExactCheckpoint(tmp_path, filename="{step}", monitor="val/loss", save_top_k=-1), max_epochs=3)
    assert sorted(int(path.stem.partition("=")[2]) for path in tmp_path.glob("step=*")) == [4, 8, 12]
    assert load(tmp_path / "last.ckpt")["global_step"] == 12


def test_a_save_can_be_asked_for(fit, tmp_path):
    class Asking(ExactCheckpoint):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == 5:
                self.save_soon()

    fit(Asking(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1000))
    assert (tmp_path / "step=6.ckpt").is_file()


# ckpt_path="last"


def test_last_starts_anew_where_there_is_none(fit, tmp_path):
    assert fit(ExactCheckpoint(tmp_path / "new"), ckpt_path="last").global_step == 8


def test_last_goes_on_behind_a_damaged_file(fit, tmp_path):
    fit(ExactCheckpoint(tmp_path, every_n_train_steps=3))
    whole = load(tmp_path / "last.ckpt")["state_dict"]
    data = bytearray((tmp_path / "last.ckpt").read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "last.ckpt").write_bytes(data)
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged \(its checksum does not match\); .*last-previous.ckpt"):
        fit(ExactCheckpoint(tmp_path, every_n_train_steps=3), ckpt_path="last")
    assert load(tmp_path / "last.ckpt")["global_step"] == 8
    assert (tmp_path / "last.ckpt.damaged").read_bytes() == data
    assert whole.keys() == load(tmp_path / "last.ckpt")["state_dict"].keys()


def test_a_damaged_last_that_is_named_is_an_error_and_stays(fit, tmp_path):
    fit(ExactCheckpoint(tmp_path, every_n_train_steps=3))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is not a whole checkpoint .*whole: .*last-previous\.ckpt"):
        fit(ExactCheckpoint(tmp_path), ckpt_path=str(last), max_epochs=3)
    assert sorted(os.listdir(tmp_path)) == ["last-previous.ckpt", "last.ckpt"]


def test_last_is_an_error_where_all_files_are_damaged(fit, tmp_path):
    for name in ("last.ckpt", "last-previous.ckpt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"last.*ckpt is damaged .*last.*ckpt is damaged .*to start anew"):
        fit(ExactCheckpoint(tmp_path), ckpt_path="last")


def test_a_full_disk_stops_the_run_and_leaves_the_older_file(fit, tmp_path, monkeypatch):
    real = os.fsync

    class Filling(ExactCheckpoint):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == 5:
                monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))

    with pytest.raises(
        CheckpointError, match=r"could not save .*last.ckpt: No space, .*; the one saved before it stays"
    ):
        fit(Filling(tmp_path, every_n_train_steps=3))
    monkeypatch.setattr(os, "fsync", real)
    assert steps(tmp_path) == [3]
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert fit(ExactCheckpoint(tmp_path), ckpt_path="last").global_step == 8


# Metrics


def metrics(steps, **values):
    return [({"train/loss": float(step), **values}, step) for step in steps]


def logger(folder, rows=()):
    made = MetricsLogger(folder, name=None, version="run")
    for row, step in rows:
        made.log_metrics(dict(row), step)
        made.save()
    return made


def lines(folder):
    return (folder / "run" / "metrics.csv").read_text().splitlines()


def test_a_metrics_file_is_opened_and_not_deleted(tmp_path):
    logger(tmp_path, metrics(range(4)))
    again = logger(tmp_path)
    again.rewind(2)
    for row, step in metrics((2, 3), extra=1.0):
        again.log_metrics(row, step)
        again.save()
    assert lines(tmp_path) == ["extra,step,train/loss", ",0,0.0", ",1,1.0", "1.0,2,2.0", "1.0,3,3.0"]
    assert os.listdir(tmp_path / "run") == ["metrics.csv"]


def test_a_row_that_the_kill_took_is_added_once(tmp_path):
    for existing in (metrics(range(3)), metrics(range(2)), []):
        folder = tmp_path / str(len(existing))
        logger(folder, existing)
        again = logger(folder)
        again.rewind(3, {"train/loss": 2.0, "step": 2})
        assert lines(folder)[0] == "step,train/loss"
        assert lines(folder)[-1] == "2,2.0"
        assert len(lines(folder)) == 1 + max(len(existing), 1) + (len(existing) == 2)


def test_a_validations_row_is_not_taken_for_that_of_its_step(tmp_path):
    logger(tmp_path, [*metrics(range(2)), ({"val/loss": 7.0}, 2)])
    again = logger(tmp_path)
    again.rewind(3, {"train/loss": 2.0, "step": 2})
    assert lines(tmp_path)[1:] == ["0,0.0,", "1,1.0,", "2,,7.0", "2,2.0,"]


@pytest.mark.parametrize("torn", ["1", "10,3.2", "10,3.25"])
def test_a_torn_row_is_dropped(tmp_path, torn):
    logger(tmp_path, metrics(range(2)))
    path = tmp_path / "run" / "metrics.csv"
    path.write_text(path.read_text() + torn)
    logger(tmp_path).rewind(20)
    assert lines(tmp_path)[1:] == ["0,0.0", "1,1.0"]


def test_a_new_run_in_an_old_folder_starts_its_file_anew(fit, tmp_path):
    logger(tmp_path, metrics(range(50)))
    own = MetricsLogger(tmp_path, name=None, version="run")
    fit(ExactCheckpoint(tmp_path / "checkpoints"), logger=own, log_every_n_steps=1)
    assert isinstance(own, CSVLogger)
    assert len(lines(tmp_path)) == 1 + 8 + 2


def test_the_newest_run_is_the_last_that_trained(tmp_path):
    assert newest_run(tmp_path / "none") is None
    for name in ("version_2/checkpoints", "version_10/checkpoints", "version_11/pictures", "version_x/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    assert newest_run(tmp_path) == 10
