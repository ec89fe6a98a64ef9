"""docs/bad_inputs.md is what this package says: each line of its tables is run, and its message compared."""

import os
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import lit_ssl
from lit_ssl import callbacks, datamodules, views
from lit_ssl.__main__ import main
from lit_ssl.datamodules import ImageDataModule, ImageTensors

DOCS = Path(__file__).parents[1] / "docs" / "bad_inputs.md"
ELLIPSIS = "…"  # in a message of the docs: what is left out, such as the names of 100 optimizers


def table(heading):
    """(input, code, message) for each line of the table under a heading."""
    section = DOCS.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == 3 for row in rows), rows
    return [(name, code.strip("`"), message.strip("` ")) for name, code, message in rows]


COMMANDS, CALLS = table("On the command line"), table("In Python")


# What the lines are about


def noise(path, size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).save(path)


def captions(name, rows, header="image,caption", encoding="utf-8"):
    Path("pairs", name).write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def make_files():
    for folder in ("images", "corrupt"):
        for place in ("a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "b/2", "b/3"):
            noise(Path(folder, f"{place}.png"))
    for i in range(8):
        noise(Path("flat", f"{i}.png"))
        noise(Path("pairs", f"{i}.png"))
    for path in Path("corrupt").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    for place in ("train/cat/0", "train/dog/0", "val/cow/0"):
        noise(Path("split", f"{place}.png"))
    for folder in ("empty", "hollow/a", "hollow/b"):
        Path(folder).mkdir(parents=True)
    Path("pipes").mkdir()
    os.mkfifo("pipes/a.png")
    Path("pipes/b.png").symlink_to("b.png")
    hostile = {
        "postscript/{}.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bombs/{}.pgm": b"P5 100000 10000 255\n",
        "escapes/{}\x1b[2J.png": b"no image",
    }
    for name, content in hostile.items():
        for i in range(8):
            path = Path(name.format(i))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    rows = [f"{i}.png,caption {i}" for i in range(8)]
    captions("captions.csv", rows)
    captions("renamed.csv", rows, "image,text")
    captions("blank.csv", [*rows[:3], "3.png,", *rows[4:]])
    captions("latin.csv", [*rows[:3], "3.png,café", *rows[4:]], encoding="latin-1")
    captions("absent.csv", [f"{i + 8}.png,caption" for i in range(8)])
    captions("table.txt", rows)
    Path("broken.yaml").write_text("model:\n  - class_path: [\n")
    Path("misspelt.yaml").write_text("model: {class_path: SimCLR, init_args: {temprature: 0.1}}\n")
    Path("section.yaml").write_text("modle: {class_path: SimCLR}\n")
    Path("list.yaml").write_text("- model\n- data\n")
    Path("loop.yaml").write_text("a: &a [*a]\nmodel: {}\n")
    laughs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    Path("laughs.yaml").write_text("\n".join(["a0: &a0 [ha]", *laughs]))
    Path("deep.yaml").write_text("a: " + "[" * 5000)
    Path("notes.txt").write_text("no checkpoint")
    Path("small.yaml").write_text(
        "trainer: {accelerator: cpu, logger: false, max_epochs: 1, limit_val_batches: 0, enable_checkpointing: false, "
        "enable_model_summary: false, enable_progress_bar: false}\n"
        "data: {init_args: {batch_size: 4, num_workers: 0, image_size: 16}}\n"
    )


class Own(ImageDataModule):
    native = lit_ssl.ImageSpec(16, 1)

    def __init__(self, labels, **kwargs):
        super().__init__(**{"batch_size": 4, **kwargs})
        self.labels = labels

    def load(self):
        self.train_set = self.val_set = self.labelled_set = ImageTensors(PIXELS, self.labels)
        self.num_classes, self.class_names = 2, ["even", "odd"]


PIXELS = torch.arange(8 * 256).reshape(8, 1, 16, 16).remainder(251).to(torch.uint8)
LABELS = torch.arange(8) % 2
SMALL = {"backbone": "mlp", "backbone_options": {"hidden": (8,)}, "lr_scaling": "none"}


def fit(module, data, *watchers, **kwargs):
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=list(watchers), **dict.fromkeys(switches, False))
    trainer.fit(module, data, **kwargs)
    return trainer


NAMES = {
    **{name: getattr(lit_ssl, name) for name in lit_ssl.__all__},
    **{name: getattr(room, name) for room in (callbacks, datamodules, views) for name in room.__all__},
    **{"torch": torch, "fit": fit, "Own": Own, "SMALL": SMALL, "gray": lit_ssl.ImageSpec(16, 1)},
    **{"pixels": PIXELS, "labels": LABELS},
    "DataLoader": DataLoader,
    "GradientAccumulationScheduler": GradientAccumulationScheduler,
    "loader": lambda *tensors: DataLoader(TensorDataset(*tensors), batch_size=4),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_files()
        trainer = fit(lit_ssl.SimCLR(**SMALL), Own(LABELS))
        trainer.save_checkpoint("simclr.ckpt")
        whole = Path("simclr.ckpt").read_bytes()
        Path("truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def compare(said, message, folder):
    said = " ".join(said.replace(str(folder.resolve()), "DIR").replace(str(folder), "DIR").split())
    pattern = ".*".join(re.escape(part) for part in message.split(ELLIPSIS))
    assert re.fullmatch(pattern, said), f"the docs say\n{message}\nbut the message is\n{said}"


@pytest.mark.parametrize(("code", "message"), [row[1:] for row in COMMANDS], ids=[row[0] for row in COMMANDS])
def test_a_command(code, message, folder, capsys):
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(shlex.split(code)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-ssl: error: ")]
    assert len(lines) == 1
    compare(lines[0].removeprefix("lit-ssl: error: "), message, folder)


@pytest.mark.parametrize(("code", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
@pytest.mark.filterwarnings("ignore")
def test_a_call(code, message, folder):
    with pytest.raises(Exception, match=r"\w") as error:  # of what kind says the message, too
        eval(code, dict(NAMES))
    compare(f"{error.type.__name__}: {error.value}", message, folder)


def test_the_tables_are_long_enough_and_name_each_input_once():
    names = [row[0] for row in (*COMMANDS, *CALLS)]
    assert len(names) == len(set(names)) >= 50
