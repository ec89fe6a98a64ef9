"""What the machine does to a run, mostly in its middle: each is told in one line that says what to do."""

import os
import shutil
import signal

import pytest
import torch
from PIL import Image

from lit_ssl import SimCLR
from lit_ssl.__main__ import main
from lit_ssl.cli import is_users, line_of
from lit_ssl.datamodules.dataset import collate
from lit_ssl.datamodules.image_files import ImageFiles

FLAGS = [
    *("--config=method/simclr", "--config=data/image_folder", "--data.root=images"),
    *("--model.backbone=mlp", "--data.image_size=16", "--data.batch_size=4", "--trainer.accelerator=cpu"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_epochs=3"),
    *("--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.enable_checkpointing=false"),
    *("--augmented_views.every_n_epochs=100", "--embedding_map.every_n_epochs=100"),
]


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """16 images in two classes, in the present folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((16, 16), 40 + i).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def told(capfd, *flags):
    """The one line that a failing fit says."""
    capfd.readouterr()
    assert main(["fit", *FLAGS, *flags]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("lit-ssl: error: ")]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


# For real


def test_a_worker_killed_in_mid_run(monkeypatch, capfd):
    def die(self, indices, _read=ImageFiles.__getitems__):
        if os.getpid() != parent and self.substitute:
            os.kill(os.getpid(), signal.SIGKILL)
        return _read(self, indices)

    parent = os.getpid()
    monkeypatch.setattr(ImageFiles, "__getitems__", die)
    said = told(capfd, "--data.num_workers=1")
    assert "a data-loading process (pid" in said
    assert "was killed from outside, most likely because memory ran out" in said
    assert "lower --data.num_workers or --data.batch_size" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_the_folder_is_gone_in_mid_run(workers, monkeypatch, capfd, images):
    monkeypatch.setattr(SimCLR, "on_train_epoch_end", lambda self: shutil.rmtree(images, ignore_errors=True))
    said = told(capfd, f"--data.num_workers={workers}", "--data.max_corrupt=100")
    assert f"the folder {images} is gone, in the middle of the run" in said
    assert "--ckpt_path last" in said


def test_an_image_is_gone_in_mid_run(monkeypatch, capfd, images):
    def lose(self):
        for path in (images / "a").glob("*"):
            path.unlink()

    monkeypatch.setattr(SimCLR, "on_train_epoch_end", lose)
    said = told(capfd, "--data.num_workers=0")
    assert "images/a/" in said
    assert "cannot be decoded (FileNotFoundError" in said
    assert "--data.max_corrupt 10" in said


def test_a_disk_that_fails_in_a_worker(monkeypatch, capfd):
    def fail(self, i):
        raise OSError(5, "Input/output error", "images/a/0.png")

    monkeypatch.setattr(ImageFiles, "source", fail)
    said = told(capfd, "--data.num_workers=1")
    assert "the disk or the network behind it failed ([Errno 5] Input/output error: 'images/a/0.png'" in said


def test_shared_memory_runs_out_where_the_run_hears_of_it(monkeypatch, capfd):
    """An error in the queue's thread would be printed, and the run would wait for its batch for ever."""
    message = "unable to allocate shared memory(shm) for file </torch_9_1_2>: No space left on device (28)"

    def full(self):
        raise RuntimeError(message)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert collate({"image": torch.zeros(2)})["image"].numel() == 2  # no worker, no need
    monkeypatch.setattr(ImageFiles, "__init__", _unshared(ImageFiles.__init__))
    said = told(capfd, "--data.num_workers=1")
    assert "/dev/shm, through which data-loading processes hand over batches, is full (" in said
    assert "--data.num_workers 0 does without it" in said


def _unshared(init):
    """The data set's own shared tensor is made before the memory is full."""

    def wrapped(self, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "share_memory_", lambda tensor: tensor)
            init(self, *args, **kwargs)

    return wrapped


# As others report them


def worker_lost(signal_name):
    try:
        try:
            raise RuntimeError(f"DataLoader worker (pid 77) is killed by signal: {signal_name}.")
        except RuntimeError as cause:
            raise RuntimeError("DataLoader worker (pid(s) 77) exited unexpectedly") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(30, "Read-only file system", "runs"), "the file system is read-only ("),
        (worker_lost("Killed"), "a data-loading process (pid 77) was killed from outside"),
        (worker_lost("Bus error"), "/dev/shm, through which data-loading processes hand over batches, is full"),
        (
            RuntimeError(
                "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that workers are "
                "out of shared memory. Please try to raise your shared memory limit."
            ),
            "--shm-size 8g",
        ),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "--data.num_workers 0"),
        (
            RuntimeError("unable to open shared memory object </torch_1_2_3>: Too many open files (24)"),
            "raise the limit (ulimit -n 65536)",
        ),
        (RuntimeError("received 0 items of ancdata"), "raise the limit (ulimit -n 65536)"),
        (OSError(24, "Too many open files"), "raise the limit (ulimit -n 65536)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            "the GPU's memory does not hold this step: lower --data.batch_size",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "the machine's memory is full",
        ),
        (MemoryError(), "the machine's memory is full"),
        (OSError(28, "No space left on device", "runs/metrics.csv"), "the disk is full ([Errno 28] No space left on"),
        (OSError(116, "Stale file handle", "data/a.png"), "the disk or the network behind it failed"),
    ],
)
def test_failures_of_the_machine_are_told_with_what_to_do(error, said):
    assert is_users(error)
    assert said in line_of(error)
    assert "\n" not in line_of(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 do not fit"), OSError(8, "Exec format")])
def test_other_failures_stay_failures_of_the_program(error):
    assert not is_users(error)
