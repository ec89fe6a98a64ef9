"""One process and two see the same: accuracies, spectra, the probe's weights, the table, the embeddings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}
    for devices in (1, 2):
        folders[devices] = tmp_path_factory.mktemp(f"on{devices}")
        script = Path(__file__).with_name("watch_ranks.py")
        done = subprocess.run(
            [sys.executable, script, folders[devices], str(devices)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Accuracy on 40 held-out images") == 1
    return folders


def test_metrics_agree(runs):
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in runs.values())
    spectrum = {f"spectrum/{name}" for name in ("rankme", "uniformity", "std", "alignment")}
    assert {"probe/val_acc", "knn/val_acc"} | spectrum <= set(one)
    for name in ("val/loss", "probe/val_acc", "knn/val_acc", *spectrum):
        assert two[name] == pytest.approx(one[name], rel=0.01), name


def test_the_probe_is_the_same_on_every_rank_and_on_one_process(runs):
    one = torch.load(runs[1] / "probe-0.pt", weights_only=True)["probe"]
    first, second = (torch.load(runs[2] / f"probe-{r}.pt", weights_only=True)["probe"] for r in (0, 1))
    assert one["weight"].any()
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0.02, atol=2e-3)


def test_the_table_and_the_files_agree(runs):
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in runs.values())
    assert one["raw_pixels"] == pytest.approx(two["raw_pixels"])
    assert one["trained"] == pytest.approx(two["trained"], abs=0.06)
    a, b = (load_file(folder / "embeddings.safetensors") for folder in runs.values())
    assert a["index"].tolist() == b["index"].tolist() == list(range(40))
    assert torch.equal(a["label"], b["label"])
    torch.testing.assert_close(a["embedding"], b["embedding"], rtol=0.01, atol=0.01)
    pictures = [sorted(p.name for p in (folder / "pictures").iterdir()) for folder in runs.values()]
    assert pictures[0] == pictures[1] != []
