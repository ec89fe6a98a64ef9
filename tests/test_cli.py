"""The command: layers compose, mistakes are told in one line, and each subcommand leaves what it promises."""

import itertools

import pytest
import torch
import yaml
from small_runs import FIT, SMALL, failure

from lit_ssl.__main__ import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def composed(capsys, *args):
    assert main(["fit", *args, "--print_config"]) == 0
    return capsys.readouterr().out


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
