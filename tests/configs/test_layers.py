"""The shipped layers: each is found, holds only what its folder is for, and composes with every other."""

import itertools
import subprocess
import sys

import pytest
import yaml

from lit_ssl import configs

LAYERS = configs.names()


def read(name):
    return yaml.safe_load(configs.find(name).read_text())


def test_every_folder_is_there():
    assert {name.partition("/")[0] for name in LAYERS} == {"method", "data", "trainer", "logger", "quickstart"}
    assert {"method/simclr", "method/simclr_hard", "method/moco", "method/moco_v3"} <= set(LAYERS)
    assert len([name for name in LAYERS if name.startswith("data/")]) == 9


@pytest.mark.parametrize("name", [name for name in LAYERS if "/" in name])
def test_a_layer_says_only_what_its_folder_is_for(name):
    section = {"method": "model", "data": "data", "trainer": "trainer", "logger": "trainer"}[name.partition("/")[0]]
    assert set(read(name)) == {section}


def test_method_layers_set_the_same_keys_within_a_class():
    # A key that one layer leaves out would keep the value of the layer before it.
    layers = [read(name)["model"] for name in LAYERS if name.startswith("method/")]
    for a, b in itertools.combinations(layers, 2):
        if a["class_path"] == b["class_path"]:
            assert set(a["init_args"]) == set(b["init_args"])
        common = {"backbone", "backbone_options", "views", "optimizer", "lr", "weight_decay", "optimizer_options"}
        assert common | {"lr_scaling", "schedule", "warmup_epochs"} <= set(a["init_args"])


def test_a_file_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find("quickstart").parent.name == "configs"
    (tmp_path / "quickstart").write_text("{}")
    assert configs.find("quickstart").read_text() == "{}"
    assert configs.find("method/simclr.yaml") == configs.find("method/simclr")


@pytest.mark.parametrize(("typo", "meant"), [("quikstart", "quickstart"), ("fashion_mnist", "data/fashion_mnist")])
def test_an_unknown_name_lists_all_and_the_closest(typo, meant):
    with pytest.raises(FileNotFoundError, match=f"did you mean {meant}") as error:
        configs.find(typo)
    assert all(name in str(error.value) for name in LAYERS)


def test_finding_a_layer_imports_no_framework():
    code = "import sys, lit_ssl.configs; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
