"""How a run's process ends when something outside ends a part of it: in seconds, in one line, with the right code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

SLOW = """
import time
from lightning.pytorch import Callback

class Slow(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        open("training", "w").close()
        time.sleep(0.2)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        open("validating", "w").close()
        time.sleep(0.2)
"""


@pytest.fixture
def started(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(200):
        Image.new("RGB", (16, 16), (i, 255 - i, 99)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "slow.py").write_text(SLOW)
    processes = []

    def start(*flags):
        command = [
            *(sys.executable, "-m", "lit_ssl", "fit", "--config", "method/simclr", "--config", "data/image_folder"),
            *("--data.root=photos", "--data.image_size=8", "--data.batch_size=4", "--data.val_fraction=0.5"),
            *(
                "--model.backbone=mlp",
                "--model.projector_hidden=8",
                "--model.projector_dim=8",
                "--trainer.max_epochs=9",
            ),
            *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0"),
            *('--trainer.callbacks=[{"class_path": "slow.Slow"}]', "--trainer.max_epochs=9"),
            *("--checkpoint.every_n_train_steps=1", *flags),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(path, process, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def children(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["training", "validating"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", [0, -1])
def test_a_killed_worker_ends_the_run_in_seconds(started, tmp_path, when, workers, which):
    limit = ["--trainer.limit_train_batches=2"] if when == "validating" else []
    process = started(f"--data.num_workers={workers}", *limit)
    wait_for(tmp_path / when, process)
    alive = children(process)
    os.kill(alive[which], signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2, said
    assert "was killed from outside" in said.splitlines()[-1]
    assert "Traceback" not in said
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in alive):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_an_interrupt_says_where_the_run_is_and_how_to_go_on(started, tmp_path):
    process = started("--data.num_workers=1")
    wait_for(tmp_path / "training", process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "interrupted at step " in said
    assert "--ckpt_path last goes on from there" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_workers_end_with_a_run_that_was_killed(started, tmp_path):
    process = started("--data.num_workers=2")
    wait_for(tmp_path / "training", process)
    alive = children(process)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in alive):
        assert time.monotonic() < end
        time.sleep(0.1)
