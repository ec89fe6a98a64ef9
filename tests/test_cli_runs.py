"""What runs of the command leave behind, and how its process ends."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import EVALUATION, FIT, failure, metrics

from lit_ssl.__main__ import SUBCOMMANDS, main
from lit_ssl.cli import CLI

FLAG = re.compile(r"--[a-z][a-z_.]*\b")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One small run, which the tests of its files and of its checkpoint share."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FIT, "--model.temperature=0.3"]) == 0
    return folder / "runs" / "simclr-quickstart" / "version_0"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# What runs leave


def test_fit_leaves_metrics_checkpoint_pictures_and_configuration(fitted):
    logged = metrics(fitted)
    expected = {"train/loss", "val/loss", "lr", "time/images_per_s", "probe/train_acc", "probe/val_acc", "knn/val_acc"}
    assert expected | {"spectrum/rankme", "spectrum/std"} <= set(logged)
    assert len(logged["train/loss"]) == len(logged["lr"]) == 3
    assert all(float(rate) > 0 for rate in logged["time/images_per_s"])
    assert (fitted / "checkpoints" / "last.ckpt").is_file()
    assert list((fitted / "pictures").glob("*.png"))
    config = yaml.safe_load((fitted / "config.yaml").read_text())
    assert config["model"]["init_args"]["temperature"] == 0.3
    summary = yaml.safe_load((fitted / "hparams.yaml").read_text())
    assert summary["model_summary"]["trainable"] > 0
    assert summary["data_summary"]["train_images"] == 8000


def test_lr_is_the_rate_of_its_step(fitted):
    rates = [float(rate) for rate in metrics(fitted)["lr"]]
    state = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    # Three steps; the scheduler in the checkpoint has moved past the last of them.
    assert rates[0] > 0
    assert rates[-1] != state["optimizer_states"][0]["param_groups"][0]["lr"]


def checkpoint(fitted):
    return ["--ckpt_path", str(fitted / "checkpoints" / "last.ckpt")]


def validated(folder="simclr-quickstart", version=0):
    return {name: values[-1] for name, values in metrics(Path("runs") / folder / f"version_{version}").items()}


def test_validate_takes_the_model_from_the_checkpoint(fitted):
    runs = [
        ["--config", "data/quickstart"],
        ["--config", "method/simclr", "--config", "data/quickstart"],  # says temperature 0.2; the checkpoint 0.3
        ["--config", str(fitted / "config.yaml")],  # says ckpt_path: null
        ["--config", "data/quickstart", "--model.temperature", "0.5"],
    ]
    for run in runs:
        assert main(["validate", *checkpoint(fitted), *run, *EVALUATION]) == 0
    found = [validated(version=i) for i in range(len(runs))]
    assert {"val/loss", "knn/val_acc", "probe/val_acc"} <= set(found[0])
    assert found[0]["val/loss"] == found[1]["val/loss"] == found[2]["val/loss"]
    assert found[0]["val/loss"] == metrics(fitted)["val/loss"][-1]
    assert found[3]["val/loss"] != found[0]["val/loss"]


def test_a_checkpoint_of_another_method_is_a_mistake(fitted, capsys):
    args = ["--config", "method/moco", "--config", "data/quickstart"]
    assert "holds a SimCLR, the configuration says MoCo" in failure(capsys, "validate", *checkpoint(fitted), *args)


def test_a_checkpoint_that_does_not_fit_is_a_mistake(fitted, capsys):
    args = ["--config", "data/quickstart", "--model.projector_dim", "7", *EVALUATION]
    assert main(["validate", *checkpoint(fitted), *args]) == 2
    assert "the checkpoint does not fit the model" in capsys.readouterr().err.splitlines()[-1]


def test_fit_resumes_from_a_checkpoint(fitted):
    flags = [flag for flag in EVALUATION if "max_epochs" not in flag]
    assert main(["fit", *checkpoint(fitted), "--config", "data/quickstart", *flags, "--trainer.max_epochs=2"]) == 0
    assert set(metrics(Path("runs/simclr-quickstart/version_0"))["epoch"]) == {"1"}


def test_test_prints_the_table(fitted, capsys):
    args = ["--config", "data/quickstart", "--trainer.limit_test_batches=4", "--table.max_train=200", *EVALUATION]
    assert main(["test", *checkpoint(fitted), *args]) == 0
    out = capsys.readouterr().out
    assert "raw pixels" in out
    assert "untrained" in out
    summary = json.loads(next(Path("runs").rglob("summary.json")).read_text())
    assert set(summary) == {"raw_pixels", "untrained", "trained"}


def test_predict_writes_embeddings(fitted):
    from safetensors.torch import load_file

    args = ["--config", "data/quickstart", "--embeddings.output", "e.safetensors", *EVALUATION]
    assert main(["predict", *checkpoint(fitted), *args]) == 0
    rows = load_file("e.safetensors")
    assert sorted(rows["index"].tolist()) == list(range(2000))
    assert rows["embedding"].shape[0] == rows["label"].shape[0] == 2000
    assert rows["embedding"].isfinite().all()


def test_switches_of_the_trainer_are_respected(tmp_path):
    assert main([*FIT, "--trainer.enable_checkpointing=false", "--trainer.logger=false"]) == 0
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("metrics.csv"))


def test_tensorboard_goes_beside_the_metrics_file(tmp_path):
    pytest.importorskip("tensorboard")
    assert main([*FIT, "--config", "logger/tensorboard"]) == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert list(tmp_path.rglob("metrics.csv"))


# The process


def command(*args, **kwargs):
    return subprocess.run([sys.executable, "-m", "lit_ssl", *args], capture_output=True, text=True, **kwargs)


def test_help_and_version_import_no_framework():
    code = """
import sys
from lit_ssl.__main__ import main
assert main(["--help"]) == 0 and main(["--version"]) == 0 and main(["fti"]) == 2 and main([]) == 2
assert not {"torch", "lightning"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "method/simclr" in done.stdout


def test_the_short_help_says_what_the_real_parser_knows(capsys):
    assert main(["--help"]) == 0
    short = capsys.readouterr().out
    assert list(SUBCOMMANDS) == [*CLI.subcommands(), "check"]
    assert all(f"\n  {name} " in short for name in SUBCOMMANDS)
    examples = [line.split()[1:] for line in short.splitlines() if line.startswith("  lit-ssl fit --config")]
    assert len(examples) == 2
    for example in examples:
        assert main([*example, "--print_config"]) == 0
    capsys.readouterr()
    assert main(["fit", "--help"]) == 0
    known = set(FLAG.findall(capsys.readouterr().out))
    own, tried = {"--traceback", "--version"}, {word for example in examples for word in example}
    assert set(FLAG.findall(short)) - own - tried <= known


@pytest.mark.slow
def test_exit_codes_of_the_process(tmp_path):
    mistake = command("fit", "--config", "quickstart", "--model.temperature", "-1", cwd=tmp_path)
    assert (mistake.returncode, len(mistake.stderr.splitlines())) == (2, 1), mistake.stderr
    told = command("--traceback", "fit", "--config", "quickstart", "--model.temperature", "-1", cwd=tmp_path)
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    full = command("fit", "--help", cwd=tmp_path)
    assert full.returncode == 0
    assert "--probe.every_n_steps" in full.stdout


@pytest.mark.slow
def test_two_processes(tmp_path):
    done = command(*FIT, "--trainer.devices=2", "--trainer.strategy=ddp", cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = tmp_path.glob("runs/simclr-quickstart/version_*")
    assert len(metrics(folder)["train/loss"]) == 3
    assert (folder / "checkpoints" / "last.ckpt").is_file()
