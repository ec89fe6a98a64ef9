"""``lit-ssl fit --ckpt_path last``: which run goes on, where it logs, and what is told where there is none."""

import os
from pathlib import Path

import pytest
import torch

from lit_ssl.__main__ import main
from lit_ssl.callbacks import exact_checkpoint
from lit_ssl.checkpoint import load

FIT = ["fit", "--config", "method/simclr", "--config", "data/quickstart", "--model.backbone=mlp"]
FIT += ["--model.projector_hidden=16", "--data.batch_size=32", "--trainer.accelerator=cpu"]
FIT += ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--knn.max_bank=64"]
FIT += ["--embedding_map.every_n_epochs=9", "--checkpoint.every_n_train_steps=2", "--trainer.max_epochs=2"]
RUNS = Path("runs/simclr-quickstart")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def last(version=0):
    return RUNS / f"version_{version}" / "checkpoints" / "last.ckpt"


def test_last_goes_on_in_the_folder_of_the_newest_run(monkeypatch):
    said = []
    monkeypatch.setattr(exact_checkpoint, "rank_zero_info", said.append)
    assert main([*FIT, "--ckpt_path=last"]) == 0  # nothing there: a new run
    assert said == [f"ckpt_path last: no checkpoint in {last().parent} yet, the run starts anew"]
    assert main(["validate", "--config", "data/quickstart", "--ckpt_path", str(last()), *FIT[7:16]]) == 0  # version_1
    rows = (last().parents[1] / "metrics.csv").read_text()
    previous = last().with_name("last-previous.ckpt")
    assert load(previous)["global_step"] == 4
    previous.replace(last())  # as if killed behind its fourth step
    assert main([*FIT, "--ckpt_path", "last"]) == 0
    assert sorted(os.listdir(RUNS)) == ["version_0", "version_1"]
    again = (last().parents[1] / "metrics.csv").read_text()
    assert len(again.splitlines()) == len(rows.splitlines()) == 1 + 6 + 2
    assert load(last())["global_step"] == 6

    # A run that was killed before its first save starts anew, in its own folder.
    (RUNS / "version_7" / "checkpoints").mkdir(parents=True)
    assert main([*FIT, "--ckpt_path=last"]) == 0
    assert load(last(7))["global_step"] == 6
    assert main([*FIT, "--ckpt_path=null"]) == 0  # and without the flag, a run is a new one
    assert last(8).is_file()


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    own = ["--checkpoint.dirpath", str(tmp_path / "own")]
    for more in ([], ["--ckpt_path=last", "--trainer.max_epochs=3"]):
        assert main([*FIT, *own, *more]) == 0
    assert os.listdir(RUNS) == ["version_0"]
    assert len((RUNS / "version_0" / "metrics.csv").read_text().splitlines()) == 1 + 9 + 3


def test_a_damaged_last_falls_back_and_is_told_of_when_named(capsys):
    assert main(FIT) == 0
    state = load(last())["state_dict"]
    data = bytearray(last().read_bytes())
    data[len(data) // 2] ^= 1
    last().write_bytes(data)
    assert main([*FIT, "--ckpt_path", str(last())]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "last.ckpt is not a whole checkpoint (its checksum does not match); the one before it is whole" in said
    assert "last-previous.ckpt" in said
    with pytest.warns(UserWarning, match="is damaged"):
        assert main([*FIT, "--ckpt_path=last"]) == 0
    assert all(torch.equal(weight, state[name]) for name, weight in load(last())["state_dict"].items())


def records():
    folder = last().parents[1]
    return {name: (folder / name).read_bytes() for name in ("config.yaml", "hparams.yaml", "metrics.csv")}


def test_what_is_refused_leaves_the_record_of_the_run_as_it_was(capsys):
    assert main(FIT) == 0
    before = records()
    assert main([*FIT, "--ckpt_path=last", "--model.lr=0.01"]) == 2
    assert "lr was 0.3, now it is 0.01" in capsys.readouterr().err
    assert records() == before
    assert main([*FIT, "--ckpt_path=last", "--model.lr=0.01", "--resume.allow=lr", "--trainer.max_epochs=3"]) == 0
    after = records()
    assert b"lr: 0.01" in after["config.yaml"]
    assert b"lr: 0.01" in after["hparams.yaml"]
    assert load(last())["changes"] == [{"step": 6, "key": "lr", "was": 0.3, "is": 0.01}]


def test_last_is_for_fit(capsys):
    assert main(["validate", "--config", "quickstart", "--ckpt_path=last"]) == 2
    assert "--ckpt_path last is for fit; give validate a file" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line(capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(FIT) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lit-ssl: error: could not save ")
    assert "No space left on device" in said
    assert os.listdir(last().parent) == []


def test_the_wandb_run_goes_on_under_its_id(monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        for more in ([], ["--ckpt_path=last", "--trainer.max_epochs=3"]):
            assert main([*FIT, "--config", "logger/wandb", *more]) == 0
            wandb.finish()
    finally:
        wandb.teardown()
    runs = [path.name.rpartition("-")[2] for path in Path("runs/wandb").glob("offline-run-*")]
    assert len(runs) == 2  # a folder for each process
    assert len(set(runs)) == 1  # of one run
    assert load(last())["global_step"] == 9
