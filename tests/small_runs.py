"""Arguments of small runs of the command, and what they log."""

import csv

from lit_ssl.__main__ import main

SMALL = [
    "--model.backbone=convnet",
    "--data.batch_size=32",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--probe.every_n_steps=1",
    "--knn.max_bank=64",
    "--spectrum.max_samples=64",
    "--embedding_map.max_samples=64",
]
EVALUATION = [flag for flag in SMALL if not flag.startswith("--model")]
FIT = ["fit", "--config", "method/simclr", "--config", "data/quickstart", *SMALL]


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows if row[name]] for name in rows[0]}


def failure(capsys, *args):
    """What a mistaken command says; it must be one line and exit code 2."""
    capsys.readouterr()
    assert main(list(args)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lit-ssl: error: ")
    return lines[0]
