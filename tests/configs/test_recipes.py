"""docs/recipes.md compares every method's layer with its source: what it calls ours is what the layer says."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lit_ssl import configs

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
TABLES = {
    name: [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in body.splitlines() if line.startswith("| `")]
    for name, body in re.findall(r"^## `(method/\w+)`\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
LAYERS = [name for name in configs.names() if name.startswith("method/")]


def shown(value):
    if isinstance(value, dict) and "class_path" in value:
        arguments = (f"{name}={json.dumps(given)}" for name, given in (value.get("init_args") or {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({', '.join(arguments)})"
    return json.dumps(value)


def test_every_layer_has_its_table():
    assert sorted(TABLES) == sorted(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_ours_is_what_the_layer_says(name):
    arguments = yaml.safe_load(configs.find(name).read_text())["model"]["init_args"]
    rows = {row[0].strip("`"): row[1:] for row in TABLES[name]}
    assert {argument: row[0].strip("`") for argument, row in rows.items()} == {
        k: shown(v) for k, v in arguments.items()
    }
    assert all(len(row) == 4 and row[3].strip() for row in rows.values())  # same, or why not
