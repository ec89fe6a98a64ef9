"""``lit-ssl check``: every broken file of a data set in one go, and exit code 2 if there is one."""

import json

import pytest
from PIL import Image

from lit_ssl.__main__ import main

SMALL = ["--data.image_size=16", "--data.num_workers=0"]


def photos(root, count):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (20, 16), (i, 99, 255 - i)).save(root / f"{i}.png")
    return root


def test_check_lists_every_broken_file_at_once(tmp_path, capsys):
    photos(tmp_path, 20)
    for i in (3, 7, 11):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    args = ["check", "--config", "data/image_folder", "--data.root", str(tmp_path), "--data.image_size=16"]
    assert main([*args, "--data.num_workers=1"]) == 2
    said = capsys.readouterr().out.splitlines()
    assert sum("cannot be decoded" in line for line in said) == 3
    assert said[-1] == "3 broken, 20 files read"
    for i in (3, 7, 11):
        (tmp_path / f"{i}.png").unlink()
    assert main([*args, "--data.num_workers=0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is broken, 17 files read"
    assert main(["check", "--config", "data/quickstart"]) == 0


def test_bad_rows_of_a_table_are_broken_too(tmp_path, capsys):
    photos(tmp_path, 8)
    rows = [f"{i}.png,caption" for i in range(6)] + ["6.png,", "7.png/x.png,caption", f"{'y' * 300}.png,caption"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    args = ["check", "--config", "data/image_text", "--data.root", str(tmp_path), *SMALL]
    assert main(args) == 2
    said, errors = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0].endswith("1 row left out")
    assert lines[1] == "captions.csv line 8: the caption of 6.png is empty"
    assert {line.partition(": ")[0] for line in lines[2:-1]} == {"captions.csv line 9", "captions.csv line 10"}
    assert lines[-1] == "3 broken, 8 files read"
    assert "skipped" not in errors
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows[:7]]) + "\n")
    assert main(args) == 2  # of a bad row alone


def test_a_name_is_one_line(tmp_path, capsys):
    photos(tmp_path, 3)
    (tmp_path / "a\nnothing is broken\x1b[2J.png").write_bytes(b"no image")
    assert main(["check", "--config", "data/image_folder", "--data.root", str(tmp_path), *SMALL]) == 2
    said = capsys.readouterr().out
    assert "a\\nnothing is broken\\x1b[2J.png cannot be decoded" in said
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize("layers", [["method/simclr", "data/image_folder"], ["data/image_folder", "run.yaml"]])
def test_layers_of_a_whole_run_say_what_the_data_are(tmp_path, capsys, monkeypatch, layers):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 3)
    (tmp_path / "run.yaml").write_text(
        json.dumps({"seed_everything": 1, "model": {"class_path": "own.Method"}, "trainer": {"max_epochs": 3}})
    )
    configs = [part for layer in layers for part in ("--config", layer)]
    assert main(["check", *configs, "--data.root", "photos", *SMALL]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is broken, 3 files read"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no data: lit-ssl check --config data/image_folder --data.root DIR"),
        (["--config", "data/image_folder", "--data.root", "none"], "no folder"),
        (["--config", "data/image_folder", "--data.rot", "x"], "did you mean root?"),
        (["--data", "lightning.pytorch.demos.boring_classes.BoringDataModule"], "check reads the data modules of this"),
    ],
)
def test_a_mistake_is_one_line(capsys, args, message):
    assert main(["check", *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
