"""Weights & Biases, on the real client in offline mode: the run's file is read back."""

import json
import struct
from collections import defaultdict

import pytest

from lit_ssl.__main__ import main

wandb = pytest.importorskip("wandb")


def records(path):
    """The run file's records: LevelDB's log format, blocks of 32 KiB, behind a header of seven bytes."""
    data, position, parts = path.read_bytes(), 7, []
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left  # too little for another header: padding
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or last of several parts
            yield b"".join(parts)
            parts = []


def read(folder):
    """Everything that the client wrote for its server: metrics, configuration, and the names of files."""
    from wandb.proto import wandb_internal_pb2

    [path] = {found.resolve() for found in folder.rglob("*.wandb")}
    history, config, files = defaultdict(list), {}, []
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            history[item.key or "/".join(item.nested_key)].append(json.loads(item.value_json))
        for update in (*record.config.update, *record.run.config.update):
            config[update.key or update.nested_key[0]] = json.loads(update.value_json)
        files += [file.path for file in record.files.files]
    return history, config, files


def test_the_run_file_holds_metrics_media_and_configuration(tmp_path, monkeypatch):
    wandb.teardown()  # the client keeps the environment in which an earlier test first started it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    layers = ["method/simclr", "data/quickstart", "logger/wandb"]
    args = [arg for layer in layers for arg in ("--config", layer)]
    flags = {
        "model.backbone": "convnet",
        "data.batch_size": 32,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 3,
        "trainer.limit_val_batches": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "probe.every_n_steps": 1,
        "knn.max_bank": 64,
        "table.on_fit_end": "true",
        "table.max_train": 200,
    }
    try:
        assert main(["fit", *args, *(f"--{key}={value}" for key, value in flags.items())]) == 0
    finally:
        wandb.finish()
        wandb.teardown()  # its service writes on for a moment: wait until it has ended

    history, config, files = read(tmp_path)
    expected = {"train/loss", "val/loss", "lr", "time/images_per_s", "probe/train_acc", "probe/val_acc", "knn/val_acc"}
    assert expected | {"spectrum/rankme", "spectrum/uniformity"} <= set(history)
    assert len(history["train/loss"]) == 3

    media = [value for values in history.values() for value in values if isinstance(value, dict) and "path" in value]
    pictures = [m for m in [*media, *({"path": f} for f in files)] if m["path"].endswith(".png")]
    assert pictures, (sorted(history), files)
    for picture in pictures:
        assert [p for p in tmp_path.rglob(picture["path"]) if p.stat().st_size > 0], picture

    assert "eval/linear/trained/accuracy" in history or any(name.startswith("eval/") for name in history), sorted(
        history
    )
    assert any(path.endswith(".table.json") and "eval/accuracy" in path for path in files), files

    assert config["config"]["model"]["init_args"]["temperature"] == 0.2
    assert config["config"]["data"]["init_args"]["batch_size"] == 32
    assert config["model_summary"]["trainable"] > 0
    assert config["data_summary"]["train_images"] == 8000
    assert (tmp_path / "runs" / "simclr-quickstart" / "version_0" / "metrics.csv").is_file()
