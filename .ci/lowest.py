"""Prints the lowest version of each requirement of pyproject.toml, as pip's ``==`` pins."""

import re
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, version = re.fullmatch(r"([\w\[\]-]+)>=([\w.]+)", requirement).groups()
    print(f"{name}=={version}")
