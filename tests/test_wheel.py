"""The wheel holds all it needs and nothing that collides, and runs where only its requirements are installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(place), str(ROOT), cwd=place)
    (path,) = place.glob("lit_ssl-*.whl")
    return path


@pytest.mark.slow
def test_the_folders_are_packages_inside_lit_ssl(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"lit_ssl"}
    for folder in ("datamodules", "callbacks", "configs"):
        inside = {n.removeprefix(f"lit_ssl/{folder}/") for n in names if n.startswith(f"lit_ssl/{folder}/")}
        shipped = {
            str(p.relative_to(ROOT / folder))
            for p in (ROOT / folder).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        assert inside == shipped
    assert "lit_ssl/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_it_runs_in_an_empty_environment_in_another_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    call(str(binaries / "pip"), "install", "--quiet", str(wheel), cwd=tmp_path)
    where = call(str(binaries / "python"), "-c", "import lit_ssl; print(lit_ssl.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path / "env"))
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu")
    call(str(binaries / "lit-ssl"), "fit", "--config", "quickstart", *short, "--table.draws", "2", cwd=tmp_path)
    assert list(tmp_path.glob("runs/*/*/summary.json"))
