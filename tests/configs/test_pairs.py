"""Shipped layers go together: each method's networks are built for each kind of data, or it is said why not."""

import itertools

import pytest
import yaml

import lit_ssl
from lit_ssl import ImageSpec, configs
from lit_ssl.__main__ import main

METHODS = [name for name in configs.names() if name.startswith("method/")]
SPECS = {
    "data/quickstart": ImageSpec(28, 1),
    "data/cifar10": ImageSpec(32, 3),
    "data/stl10": ImageSpec(96, 3),
    "data/image_folder": ImageSpec(224, 3),
}
COLOUR = "for colour take likelihood='gaussian' and binarize='none'"


def built(name, spec):
    section = yaml.safe_load(configs.find(name).read_text())["model"]
    arguments = dict(section["init_args"])
    if "queue_size" in arguments:
        arguments["queue_size"] = min(arguments["queue_size"], 64)
    method = getattr(lit_ssl, section["class_path"])(spec=spec, seed=0, **arguments)
    method.configure_model()
    return method


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), itertools.product(METHODS, SPECS))
def test_every_method_is_built_for_every_kind_of_image(name, data):
    method = built(name, SPECS[data])
    assert method.num_features > 0
    if name == "method/vae" and SPECS[data].channels > 1:
        with pytest.raises(ValueError, match=COLOUR):
            method.on_fit_start()


@pytest.mark.parametrize("trainer", ["trainer/cpu", "trainer/ddp", "trainer/fsdp"])
@pytest.mark.parametrize("name", ["quickstart", *METHODS[::4]])
def test_methods_compose_with_trainers_and_loggers(name, trainer, capsys):
    layers = [name, "data/quickstart", trainer, "logger/csv"]
    assert main(["fit", *(part for layer in layers for part in ("--config", layer)), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    expected = yaml.safe_load(configs.find(trainer).read_text())["trainer"]
    assert config["trainer"]["devices"] == expected["devices"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["method/flip", "method/slip", "method/mae_small", "method/moco_v3_vit"])
def test_layers_that_follow_their_papers_closely_take_a_step(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = name in ("method/flip", "method/slip")
    data = ["data/captioned_shapes", "--data.train_size=64", "--data.val_size=16"] if text else ["data/quickstart"]
    small = ["--model.text_options={width: 32, depth: 1, heads: 2}"] if text else []
    flags = ["--data.batch_size=8", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config", name, "--config", *data, *small, *flags]) == 0
