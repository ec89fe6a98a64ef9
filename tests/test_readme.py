"""Every command and Python block of the README runs, with fewer steps and less data."""

import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SHORT = "--trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --data.batch_size 16 --trainer.accelerator cpu"


def write_fashion_mnist(folder):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 256), ("t10k", 64)):
        images = torch.randint(0, 256, (count, 28, 28), generator=generator).to(torch.uint8).numpy().tobytes()
        labels = (torch.arange(count) % 10).to(torch.uint8).numpy().tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
        for path in folder.glob(f"{name}-*-ubyte"):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def write_captions(folder):
    rows = [f"{i}.jpg,a picture of shade {i}" for i in range(40)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    for shard in range(10):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 4):
                text = f"a picture of shade {i}".encode()
                (member := tarfile.TarInfo(f"{i}.txt")).size = len(text)
                tar.addfile(member, io.BytesIO(text))
                tar.add(folder / f"{i}.jpg", f"{i}.jpg")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A user's folder: data and photos of their own, and a first run's checkpoint."""
    place = tmp_path_factory.mktemp("readme")
    write_fashion_mnist(place / "data" / "FashionMNIST" / "raw")
    (place / "photos").mkdir()
    for i in range(40):
        Image.new("RGB", (60, 40), (i * 6, 255 - i * 6, 99)).save(place / "photos" / f"{i}.jpg")
    write_captions(place / "photos")
    fit = next(c for c in COMMANDS if "fit --config method/simclr --config data/fashion_mnist" in c)
    run(f"{fit} {SHORT} --trainer.max_epochs 1 --model.backbone resnet18", place)
    return place


def run(command, place):
    binary = Path(sys.executable).parent / "lit-ssl"
    command = command.replace("lit-ssl", str(binary), 1)
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lit-ssl")])
def test_command(command, workplace):
    extra = "" if "--print_config" in command or " check " in command else SHORT
    if " fit " in command and extra:
        extra += " --trainer.max_epochs 1"
    if ("image_folder" in command and " check " not in command) or "image_text" in command:
        extra += " --data.image_size 32"
    if "captioned_shapes" in command:
        extra += " --data.train_size 64 --data.val_size 16"
    if " predict " in command:
        extra += " --trainer.limit_predict_batches 1"
    if " test " in command:
        extra += " --trainer.limit_test_batches 1"
    output = run(f"{command} {extra}", workplace)
    if " test " in command or "quickstart" in command:
        assert "raw pixels" in output
        assert "untrained" in output


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for kind, b in BLOCKS if kind == "python"], ids=lambda b: b.split("\n")[0])
def test_python_block(block, workplace, tmp_path):
    for folder in ("data", "runs"):
        shutil.copytree(workplace / folder, tmp_path / folder)
    block = re.sub(r"Trainer\(", "Trainer(limit_train_batches=2, limit_val_batches=1, accelerator='cpu', ", block)
    block = block.replace('FashionMNIST("data")', 'FashionMNIST("data", batch_size=16)')
    (tmp_path / "block.py").write_text(block)
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_other_block_is_an_installation():
    others = [c for c in COMMANDS if not c.startswith("lit-ssl")]
    assert others == ["pip install -e ."]
    assert "pip install -e '.[test]' && pytest" in README
