"""A run goes on from its own checkpoint only: another is refused by what differs, or that is allowed knowingly."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback

from lit_ssl import VAE, ImageSpec, MoCo, SimCLR
from lit_ssl.callbacks import ExactCheckpoint, OnlineLinearProbe
from lit_ssl.checkpoint import CheckpointError, WholeFileIO, load
from lit_ssl.datamodules import ImageDataModule, ImageTensors
from lit_ssl.networks.follower import Follower
from lit_ssl.optim import warmup_cosine
from lit_ssl.run_lock import RunLock
from lit_ssl.views import SimCLRViews

IMAGES = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Data(ImageDataModule):
    native = ImageSpec(8, 1)

    def __init__(self, count=64, **kwargs):
        super().__init__(**{"batch_size": 8, "seed": 0, **kwargs})
        self.count = count

    def load(self):
        self.train_set = self.labelled_set = ImageTensors(IMAGES[: self.count], torch.arange(self.count) % 4)
        self.num_classes = 4


class Rates(Callback):
    def __init__(self, stop=None):
        self.stop, self.rates = stop, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def run(make_trainer, tmp_path):
    def run(
        data=None, stop=None, allow=(), path="last", callbacks=(), trainer=None, kind=SimCLR, leave_out=(), **method
    ):
        small = {"backbone": "mlp", "backbone_options": {"hidden": [8]}, "projector_hidden": 8, "projector_dim": 4}
        method = {**small, "warmup_epochs": 0, "seed": 0, **method}
        method = kind(**{name: value for name, value in method.items() if name not in leave_out})
        watch = Rates(stop)
        saver = ExactCheckpoint(tmp_path / "run", every_n_train_steps=1, allow=allow)
        options = {"max_epochs": 2, "enable_checkpointing": True, **(trainer or {})}
        trainer = make_trainer(callbacks=[watch, *callbacks, saver], **options)
        try:
            trainer.fit(method, data or Data(), ckpt_path=path)
        except SystemExit:
            assert stop is not None
        return watch.rates, trainer

    return run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.1}, "lr was 0.3, now it is 0.1"),
        ({"temperature": 0.5}, "temperature was 0.2, now it is 0.5"),
        ({"seed": 7}, "seed was 0, now it is 7"),
        ({"optimizer": "sgd"}, "optimizer was lars, now it is sgd"),
        ({"optimizer_options": {"momentum": 0.8}}, "optimizer_options was None, now it is {'momentum': 0.8}"),
        ({"views": SimCLRViews(scale=(0.5, 1.0))}, "views was None, now it is {"),
        ({"data": Data(count=72)}, r"images was 64 of \(1, 8, 8\) \(pixels \w+\), now it is 72"),
        ({"data": Data(batch_size=16)}, "batch_size was 8, now it is 16"),
        ({"data": Data(seed=3)}, "data.seed was 0, now it is 3"),
        ({"trainer": {"accumulate_grad_batches": 2}}, "accumulate_grad_batches was 1, now it is 2"),
        ({"trainer": {"limit_train_batches": 3}}, "limit_train_batches was 1.0, now it is 3"),
        ({"trainer": {"precision": "64-true"}}, "precision was 32-true, now it is 64-true"),
        ({"trainer": {"gradient_clip_val": 1.0}}, "gradient_clip_val was None, now it is 1.0"),
    ],
)
def test_another_run_is_refused_by_name_with_both_values(run, change, said):
    run(stop=3)
    with pytest.raises(CheckpointError, match=f"this is not the run of the checkpoint: .*{said}"):
        run(**change)
    run()  # with nothing changed it goes on


def test_what_leaves_the_numbers_as_they_are_may_change(run):
    run(stop=3)
    _, trainer = run(
        data=Data(num_workers=1), trainer={"max_epochs": 3, "log_every_n_steps": 7}, chunk_size=4, compile=False
    )
    assert trainer.global_step == 24


def test_an_allowed_change_takes_effect_and_is_on_record(run, tmp_path):
    run(stop=3)
    rates, trainer = run(lr=0.1, allow="lr, temperature")
    expected, _ = run_anew(run, tmp_path, lr=0.1)
    assert rates == expected[3:]
    assert load(tmp_path / "run" / "last.ckpt")["changes"] == [{"step": 3, "key": "lr", "was": 0.3, "is": 0.1}]
    assert trainer.global_step == 16


def run_anew(run, tmp_path, **kwargs):
    (tmp_path / "run").rename(tmp_path / "kept")
    found = run(**kwargs)
    (tmp_path / "run").rename(tmp_path / "anew")
    (tmp_path / "kept").rename(tmp_path / "run")
    return found


@pytest.mark.parametrize("size", [4, 16])
def test_with_another_batch_the_rate_follows_the_share_of_samples_seen(run, size):
    before, _ = run(stop=6, lr_scaling="none")
    after, _ = run(data=Data(batch_size=size), allow=["batch_size"], lr_scaling="none")
    steps = 2 * 64 // size
    assert len(after) == steps - 6 * 8 // size  # what was seen is not seen again
    assert after == pytest.approx([0.3 * course(steps)(step) for step in range(6 * 8 // size, steps)])
    assert before[0] == pytest.approx(0.3)


def course(total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    return warmup_cosine(optimizer, warmup_steps=0, total_steps=total).lr_lambdas[0]


@pytest.mark.parametrize("size", [4, 16])
def test_a_run_with_another_batch_keeps_its_place_through_the_next_kills(run, size):
    four = {"trainer": {"max_epochs": 4}, "lr_scaling": "none"}
    run(stop=12, **four)
    place, total = 12 * 8 // size, 4 * 64 // size
    for more in (3, 2):  # steps until it is killed again
        after, _ = run(data=Data(batch_size=size), stop=12 + place - 12 * 8 // size + more, allow="batch_size", **four)
        assert after == pytest.approx([0.3 * course(total)(step) for step in range(place, place + more)])
        place += more
    after, _ = run(data=Data(batch_size=size), **four)  # with the batch that it has by now nothing is to be allowed
    assert after == pytest.approx([0.3 * course(total)(step) for step in range(place, total)])


@pytest.mark.parametrize("size", [4, 16])
def test_a_run_of_so_many_steps_with_another_batch_ends_at_the_last_of_them(run, size):
    steps = {"trainer": {"max_steps": 16, "max_epochs": -1}, "lr_scaling": "none"}
    run(stop=6, **steps)
    after, trainer = run(data=Data(batch_size=size), allow="batch_size", **steps)
    place = 6 * 8 // size
    assert trainer.global_step == 16
    assert after == pytest.approx([0.3 * course(place + 10)(step) for step in range(place, place + 10)])


def test_the_momentum_of_a_key_encoder_follows_the_samples_too(run, monkeypatch):
    followed = []
    monkeypatch.setattr(Follower, "follow", lambda follower, step, total: followed.append(step / total))
    moco = {"kind": MoCo, "momentum_schedule": "cosine", "queue_size": 0}
    run(stop=6, **moco)
    run(data=Data(batch_size=16), allow="batch_size", **moco)
    assert followed == pytest.approx([*(step / 16 for step in range(1, 7)), *(step / 8 for step in range(4, 9))])


def test_the_warm_up_of_beta_follows_the_samples_too(run, monkeypatch):
    shares, warmup = [], VAE._warmup
    monkeypatch.setattr(VAE, "_warmup", lambda vae: shares.append(warmup(vae)) or shares[-1])
    vae = {"kind": VAE, "kl_warmup_epochs": 2, "leave_out": ("projector_hidden", "projector_dim")}
    run(stop=6, **vae)
    run(data=Data(batch_size=16), allow="batch_size", **vae)
    trained = [share for share in shares if share < 1]  # in an evaluation it is 1
    assert trained == pytest.approx([*(step / 16 for step in range(6)), *(step / 8 for step in range(3, 8))])


def test_the_peak_is_that_of_the_batch(run):
    run(stop=6)
    after, _ = run(data=Data(batch_size=16), allow=["batch_size"])
    assert after[0] == pytest.approx(0.3 * 16 / 256 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 8)).item()) / 2)


def test_a_file_of_before_and_one_of_another_version_are_told(run, tmp_path, caplog, monkeypatch):
    run(stop=3)
    content = load(tmp_path / "run" / "last.ckpt")
    old = {**content, "fingerprint": {**content["fingerprint"], "lit_ssl": "9.9"}}
    WholeFileIO().save_checkpoint(old, tmp_path / "run" / "last.ckpt")
    with pytest.warns(UserWarning, match=r"written by lit_ssl 9\.9, this is"):
        run(stop=5)
    content = load(tmp_path / "run" / "last.ckpt")
    del content["fingerprint"]
    WholeFileIO().save_checkpoint(content, tmp_path / "run" / "last.ckpt")
    with caplog.at_level("INFO", "lightning.pytorch"):
        run()
    assert "nothing could be compared" in caplog.text


def test_states_that_are_gone_are_told(run, tmp_path):
    probe = [OnlineLinearProbe(every_n_steps=1)]
    run(stop=3, callbacks=probe)
    content = load(tmp_path / "run" / "last.ckpt")
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "Probe" not in k}
    WholeFileIO().save_checkpoint(content, tmp_path / "run" / "last.ckpt")
    with pytest.warns(UserWarning, match="no state of OnlineLinearProbe"):
        run(callbacks=[OnlineLinearProbe(every_n_steps=1), *[]])


def test_a_new_run_keeps_off_the_weights_of_an_older_one(run, tmp_path):
    run(stop=3)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run, which this one would replace"):
        run(path=None)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_names_of_what_may_differ_are_checked():
    with pytest.raises(ValueError, match=r"allow must be names of arguments, got \[3\]"):
        ExactCheckpoint(allow=[3])


def test_two_savers_in_folders_of_their_own(make_trainer, tmp_path):
    savers = [ExactCheckpoint(tmp_path / name) for name in ("a", "b")]
    method = SimCLR(backbone="mlp", projector_hidden=8, projector_dim=4, seed=0)
    make_trainer(enable_checkpointing=True, callbacks=savers).fit(method, Data())
    for name in ("a", "b"):
        again = SimCLR(backbone="mlp", projector_hidden=8, projector_dim=4, seed=0)
        moved = ExactCheckpoint(tmp_path / "c" / name)
        trainer = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[moved])
        trainer.fit(again, Data(), ckpt_path=tmp_path / name / "last.ckpt")
        assert trainer.global_step == 16


# The lock


def test_a_folder_has_one_writer_and_a_dead_one_does_not_count(tmp_path):
    hold = f"""
import sys, time
from pathlib import Path
from lit_ssl.run_lock import RunLock
lock = RunLock(Path({str(tmp_path)!r}))
print("held", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=rf"is in use by process {other.pid} on \S+: wait for it, or stop it"):
        RunLock(tmp_path)
    other.kill()
    other.wait()
    lock = RunLock(tmp_path)
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
