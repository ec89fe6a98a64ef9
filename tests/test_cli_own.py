"""Classes of the user's own, and what Lightning can do besides: by the command as in Python."""

import subprocess
import sys

import pytest
import torch
import yaml
from small_runs import FIT

from lit_ssl.__main__ import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(*args, **kwargs):
    return subprocess.run([sys.executable, "-m", "lit_ssl", *args], capture_output=True, text=True, **kwargs)


# A method of one's own


def fit_own(tmp_path, monkeypatch, body, *flags):
    (tmp_path / "own_method.py").write_text(f"from lit_ssl import MoCo\nclass Mine(MoCo):\n    {body}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_method", raising=False)
    small = [flag for flag in FIT[5:] if "backbone" not in flag]
    return main(
        ["fit", "--model=own_method.Mine", "--config", "data/quickstart", "--model.backbone=mlp", *small, *flags]
    )


@pytest.mark.parametrize(
    "body",
    [
        'def __init__(self, **kwargs): kwargs.setdefault("queue_size", 0); super().__init__(**kwargs)',
        "def __init__(self, queue_size=0, **kwargs): super().__init__(queue_size=queue_size, **kwargs)",
        "def __init__(self, **kwargs): super().__init__(queue_size=0, **kwargs)",
    ],
)
def test_the_command_builds_what_python_builds(tmp_path, monkeypatch, body):
    assert fit_own(tmp_path, monkeypatch, body) == 0
    [run] = tmp_path.glob("runs/*/version_0")
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert "queue" not in content["state_dict"]
    recorded = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert recorded.get("queue_size", 0) == 0
    loaded = sys.modules["own_method"].Mine.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert loaded.queue_size == loaded.untrained().queue_size == 0


def test_defaults_that_only_python_can_follow_are_told(tmp_path, monkeypatch, capsys):
    body = 'def __init__(self, **kwargs): super().__init__(**{"queue_size": 0, **kwargs})'
    assert fit_own(tmp_path, monkeypatch, body) == 2
    said = capsys.readouterr().err
    assert "the __init__ of Mine hands its **kwargs on in a way that only Python can follow" in said


def test_a_class_in_the_working_folder_is_found_only_if_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('was imported')")
    done = command(*FIT[:-2], "--trainer.fast_dev_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_another_progress_bar_takes_the_place_of_ours(tmp_path):
    flags = [flag for flag in FIT if "enable_progress_bar" not in flag]
    assert main([*flags, "--trainer.callbacks+=RichProgressBar", "--trainer.fast_dev_run=true"]) == 0


def test_a_saver_of_the_users_own_does_not_decide_where_a_run_goes_on(tmp_path):
    own = '--trainer.callbacks+={"class_path": "ModelCheckpoint", "init_args": {"save_last": true, "dirpath": "own"}}'
    assert main([*FIT, own]) == 0
    assert (tmp_path / "own" / "last.ckpt").is_file()
    found = tmp_path / "runs" / "simclr-quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    (tmp_path / "own" / "last.ckpt").write_bytes(b"what a run must not go on from")
    assert main([*FIT, own, "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    assert torch.load(found, weights_only=True)["global_step"] == 6


def test_validation_may_be_due_by_time():
    assert main([*FIT, "--trainer.val_check_interval", "00:00:05:00"]) == 0


def test_a_spec_may_have_one_size(capsys):
    assert main([*FIT, "--model.spec", "{size: 28, channels: 1}", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["spec"]["size"] == 28


def test_nothing_is_said_on_which_nobody_can_act(tmp_path):
    flags = [flag for flag in FIT if "log_every" not in flag and "summary" not in flag]
    done = command(*flags, "--model.warmup_epochs=0", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stderr.strip().splitlines()
    assert lines[0] == "8,000 images to train on, 2,000 held out"
    assert [line.split()[0] for line in lines[1:4]] == ["network", "backbone", "projector"], lines
    assert len(lines) == 6, lines
