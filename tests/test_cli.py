"""The command: layers compose, mistakes are told in one line, and each subcommand leaves what it promises."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_ssl.__main__ import main

SMALL = [
    "--model.backbone=convnet",
    "--data.batch_size=32",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--probe.every_n_steps=1",
    "--knn.max_bank=64",
    "--spectrum.max_samples=64",
    "--embedding_map.max_samples=64",
]
EVALUATION = [flag for flag in SMALL if not flag.startswith("--model")]
FIT = ["fit", "--config", "method/simclr", "--config", "data/quickstart", *SMALL]


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


def composed(capsys, *args):
    assert main(["fit", *args, "--print_config"]) == 0
    return capsys.readouterr().out


def failure(capsys, *args):
    """What a mistaken command says; it must be one line and exit code 2."""
    capsys.readouterr()
    assert main(list(args)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lit-ssl: error: ")
    return lines[0]


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows if row[name]] for name in rows[0]}


# Composition


def test_layers_compose_in_any_order(capsys):
    layers = ["method/moco", "data/cifar10", "trainer/cpu"]
    outputs = {
        composed(capsys, *(arg for layer in order for arg in ("--config", layer)), "--data.root", "DIR")
        for order in itertools.permutations(layers)
    }
    assert len(outputs) == 1
    config = yaml.safe_load(outputs.pop())
    assert config["model"]["class_path"].endswith("MoCo")
    assert config["data"]["init_args"]["root"] == "DIR"
    assert config["trainer"]["accelerator"] == "cpu"


def test_the_right_wins_over_the_left(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {init_args: {temperature: 0.7}}")
    base = ["--config", "method/simclr", "--config", "data/quickstart"]
    for args, expected in (
        ([*base, "--config", "mine.yaml"], 0.7),
        ([*base, "--config", "mine.yaml", "--model.temperature", "0.9"], 0.9),
        ([*base, "--model.temperature", "0.9", "--config", "mine.yaml"], 0.7),
        (["--config", "mine.yaml", *base], 0.2),
    ):
        assert yaml.safe_load(composed(capsys, *args))["model"]["init_args"]["temperature"] == expected


def test_arguments_may_come_before_the_class(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {init_args: {beta: 1.0, backbone: resnet50}}")
    config = yaml.safe_load(composed(capsys, "--config", "mine.yaml", "--model", "SimCLR", "--data", "FashionMNIST"))
    assert config["model"]["init_args"]["backbone"] == "resnet50"
    assert config["model"]["init_args"]["beta"] == 1.0


@pytest.mark.parametrize(
    ("model", "data"), [("SimCLR", "FashionMNIST"), ("lit_ssl.methods.SimCLR", "lit_ssl.datamodules.FashionMNIST")]
)
def test_short_and_full_names(capsys, model, data):
    config = yaml.safe_load(composed(capsys, "--model", model, "--data", data, "--data.root", "DIR"))
    assert config["model"]["class_path"].endswith("SimCLR")
    assert config["data"]["class_path"].endswith("FashionMNIST")


def test_swapping_the_method_keeps_nothing_that_the_new_layer_sets(capsys):
    both = composed(capsys, "--config", "method/simclr", "--config", "method/moco", "--config", "data/quickstart")
    assert both == composed(capsys, "--config", "method/moco", "--config", "data/quickstart")


@pytest.mark.parametrize("layer", ["quickstart", "method/moco_v3"])
def test_printed_configuration_round_trips_to_the_byte(capsys, tmp_path, layer):
    first = composed(capsys, "--config", layer, "--config", "data/quickstart", "--probe.every_n_steps", "3")
    (tmp_path / "printed.yaml").write_text(first)
    assert composed(capsys, "--config", "printed.yaml") == first


def test_one_batch_is_not_all_of_them(capsys):
    config = composed(capsys, "--config", "quickstart", "--trainer.limit_val_batches", "1")
    assert yaml.safe_load(config)["trainer"]["limit_val_batches"] == 1
    assert "limit_val_batches: 1\n" in config


def test_every_shipped_method_and_data_layer_parses(capsys):
    from lit_ssl import configs

    methods, data = ([n for n in configs.names() if n.startswith(f"{kind}/")] for kind in ("method", "data"))
    for method in methods:
        composed(capsys, "--config", method, "--config", data[0])
    for layer in data:
        composed(capsys, "--config", methods[0], "--config", layer)


# Mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fit", "--config", "quikstart"], "did you mean quickstart"),
        (["fit", "--config", "quickstart", "--model.temprature", "1"], "'temprature' is not accepted by SimCLR"),
        (["fit", "--config", "quickstart", "--trainer.max_epoch", "1"], "--trainer.max_epoch"),
        (["fit", "--config", "quickstart", "--probe.evry_n_steps", "1"], "--probe.evry_n_steps"),
        (["fit", "--config", "quickstart", "--model.temperature", "-1"], "temperature must be a finite number above 0"),
        (["fit", "--config", "quickstart", "--model.temperature", "warm"], "model.temperature: Expected a float. Got"),
        (["fit", "--config", "quickstart", "--model.schedule", "linear"], "model.schedule: Expected one of 'cosine'"),
        (["fit", "--config", "quickstart", "--knn.k", "0"], "k must be an integer of at least 1"),
        (["fit", "--config", "quickstart", "--seed_everything", "-3"], "seed_everything: -3"),
        (["fit", "--config", "quickstart", "--config", "trainer/gpu"], "gpu"),
        (["fit", "--model", "SimClR", "--data", "Quickstart"], "no class 'SimClR'; known are CLIP, MAE, MCL, VAE"),
        (["fit", "--config", "method/simclr"], "no data: give --config with one of data/captioned_shapes"),
        (["fit", "--config", "data/quickstart"], "no model: give --config with one of method/beta_vae, method/clip"),
        (["fit", "--config", "misspelt.yaml", "--config", "data/quickstart"], "'temprature' is not accepted by SimCLR"),
        (["fit", "--config", "section.yaml"], "modle"),
        (["fit", "--config", "broken.yaml"], "config"),
        (["validate", "--config", "quickstart"], "validate needs trained weights: --ckpt_path"),
        (["validate", "--config", "quickstart", "--ckpt_path", "no.ckpt"], "no file 'no.ckpt'"),
        (["test", "--config", "quickstart", "--ckpt_path=section.yaml"], "section.yaml is not a whole checkpoint"),
        (["fti", "--config", "quickstart"], "did you mean fit"),
        (
            ["fit", "--config", "method/simclr", "--config", "data/fashion_mnist", "--data.root", "DIR", *SMALL[1:]],
            "DIR",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, args, said):
    if "trainer/gpu" in args and torch.cuda.is_available():
        pytest.skip("not a mistake on this machine")
    (tmp_path / "misspelt.yaml").write_text("model: {class_path: SimCLR, init_args: {temprature: 0.1}}")
    (tmp_path / "section.yaml").write_text("modle: {class_path: SimCLR}")
    (tmp_path / "broken.yaml").write_text("model:\n  - class_path: [\n")
    assert said in failure(capsys, *args)


def test_the_traceback_comes_on_request():
    from lit_ssl.cli import UserError

    with pytest.raises(UserError, match="temperature must be a finite number above 0") as error:
        main(["--traceback", "fit", "--config", "quickstart", "--model.temperature", "-1"])
    assert error.value.__cause__ is not None


def test_a_failure_of_the_program_keeps_its_traceback(monkeypatch):
    from lit_ssl import SimCLR

    monkeypatch.setattr(SimCLR, "loss", lambda self, batch: [].missing)
    with pytest.raises(AttributeError, match="missing"):
        main(FIT)


def test_an_error_in_a_loaders_worker_is_told_as_its_own(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "images" / name / f"{i}.png").write_bytes(b"no image")
    flags = [f for f in SMALL if "num_workers" not in f and "batch_size" not in f]
    args = ["fit", "--config", "method/simclr", "--config", "data/image_folder", "--data.root", "images", *flags]
    said = failure(capsys, *args, "--data.num_workers=1", "--data.batch_size=4", "--data.image_size=32")
    assert ".png" in said
    assert "max_corrupt" in said
    assert "Traceback" not in said


def test_a_missing_extra_is_named(monkeypatch, capsys):
    import lightning.fabric.loggers.tensorboard as module

    monkeypatch.setattr(module, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(module, "_TENSORBOARDX_AVAILABLE", False)
    said = failure(capsys, *FIT, "--config", "logger/tensorboard")
    assert "pip install 'lit-ssl[tensorboard]'" in said


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
