"""ImageDataModule inside Lightning: keys, views, padding, resume; workers change nothing."""

from itertools import chain

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ssl import ImageSpec
from lit_ssl.datamodules import ImageDataModule, ImageTensors, Quickstart
from lit_ssl.random import sample_key


class Blobs(ImageDataModule):
    """70 training images and 11 held out, 6 x 6."""

    native = ImageSpec(6, 1)

    def load(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (81, 1, 6, 6), dtype=torch.uint8, generator=generator)
        self.train_set = self.labelled_set = ImageTensors(images[:70], torch.arange(70) % 3)
        self.val_set = ImageTensors(images[70:], torch.arange(11) % 3)
        self.num_classes = 3


def two_views(image, key, spec, dtype):
    shift = (key % 7).to(image.device, dtype)[:, None, None, None] / 1000
    return [image.to(dtype) / 255, image.to(dtype) / 255 + shift]


class Probe(LightningModule):
    """Learns one weight a pixel and keeps what it was given."""

    def __init__(self, views=two_views):
        super().__init__()
        self.views = views
        self.layer = torch.nn.Linear(36, 1)
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def _step(self, stage, batch):
        self.seen[stage].append(batch)
        x = batch["views"][1] if "views" in batch else batch["image"].to(self.dtype) / 255
        return self.layer(x.flatten(1)).square().sum() / 100

    def training_step(self, batch):
        return self._step("train", batch)

    def validation_step(self, batch):
        self._step("val", batch)

    def test_step(self, batch):
        self._step("test", batch)

    def predict_step(self, batch):
        self._step("predict", batch)
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    def make(**kwargs):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        defaults = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        return Trainer(**{**quiet, **defaults, "default_root_dir": tmp_path, **kwargs})

    return make


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def test_training_batches_carry_keys_of_their_epoch_and_views(trainer):
    module = Probe()
    trainer(max_epochs=2).fit(module, Blobs(batch_size=32, seed=9))
    train, val = module.seen["train"], module.seen["val"]
    assert [len(batch["image"]) for batch in train] == [32] * 4
    assert [len(batch["image"]) for batch in val] == [11] * 2
    for i, batch in enumerate(train):
        assert torch.equal(batch["key"], sample_key(9, i // 2, batch["index"]))
        assert batch["key"].device.type == "cpu"
        assert torch.equal(batch["views"][1], two_views(batch["image"], batch["key"], None, torch.float32)[1])
        assert torch.equal(batch["label"], batch["index"] % 3)
    assert indices(train[:2]) != indices(train[2:])
    for batch in val:
        assert torch.equal(batch["key"], sample_key(9, -1, torch.arange(11)))


def test_views_given_to_the_data_go_first_and_have_the_module_s_dtype(trainer):
    own = []

    def one_view(image, key, spec, dtype):
        own.append((spec, dtype))
        return [image.to(dtype), image.to(dtype)]

    trainer(max_epochs=1, precision="64-true").fit(Probe(), Blobs(batch_size=32, views=one_view, image_size=12))
    assert set(own) == {(ImageSpec(12, 1), torch.float64)}


def test_views_are_made_for_the_spec_of_the_module_if_it_has_one(trainer):
    sizes = []

    def note(image, key, spec, dtype):
        sizes.append(spec.size)
        return [image.to(dtype), image.to(dtype)]

    module = Probe(note)
    module.spec = {"size": [10, 10], "channels": 1}
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(module, Blobs(batch_size=32))
    assert sizes == [(10, 10)]


def test_test_and_predict_give_held_out_images_and_only_test_their_views(trainer):
    module, data = Probe(), Blobs(batch_size=4)
    trainer().test(module, data, verbose=False)
    predicted = trainer().predict(module, data)
    assert torch.cat(predicted).tolist() == list(range(11))
    assert list(chain(*indices(module.seen["test"]))) == list(range(11))
    assert all("views" in batch for batch in module.seen["test"])
    assert all("views" not in batch for batch in module.seen["predict"])


def test_padding_rows_are_dropped_in_evaluation_and_only_there(trainer):
    data = Blobs(batch_size=4, seed=0)
    data.trainer = trainer()
    data.setup()
    raw = data.val_set.__getitems__([3, -1, 5])
    data.trainer.training = True
    assert data.on_before_batch_transfer(dict(raw), 0)["index"].tolist() == [3, -1, 5]
    data.trainer.validating = True
    kept = data.on_before_batch_transfer({**raw, "text": ["a", "b", "c"]}, 0)
    assert kept["index"].tolist() == [3, 5]
    assert kept["text"] == ["a", "c"]
    assert len(kept["image"]) == len(kept["key"]) == len(kept["label"]) == 2
    without_index = {"image": raw["image"], "label": raw["label"]}
    assert len(data.on_before_batch_transfer(without_index, 0)["image"]) == 3


def test_a_module_without_views_gets_images(trainer):
    module = Probe(views=None)
    trainer(max_epochs=1).fit(module, Blobs(batch_size=32))
    assert "views" not in module.seen["train"][0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(trainer, workers):
    runs = []
    for n in (0, workers):
        module = Probe()
        with torch.no_grad():
            module.layer.weight.fill_(0.1)
            module.layer.bias.zero_()
        trainer(max_epochs=2).fit(module, Blobs(batch_size=16, num_workers=n, seed=5))
        runs.append((module.layer.weight.detach(), indices(module.seen["train"]), indices(module.seen["val"])))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_the_middle_of_an_epoch_sees_what_it_would_have_seen(trainer, tmp_path, workers):
    def run(name, resume=None, *callbacks):
        torch.manual_seed(0)
        module = Probe()
        save = ModelCheckpoint(tmp_path / name, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        loop = trainer(max_epochs=2, callbacks=[save, *callbacks], enable_checkpointing=True, limit_val_batches=0)
        data = Blobs(batch_size=10, num_workers=workers, seed=2)
        try:
            loop.fit(module, data, ckpt_path=resume)
        except RuntimeError as error:
            assert "killed" in str(error)  # noqa: PT017
        return module

    whole = run("whole")
    first = run("killed", None, Kill(11))
    assert len(first.seen["train"]) == 11
    second = run("resumed", str(tmp_path / "killed" / "step=9.ckpt"))
    assert indices(second.seen["train"]) == indices(whole.seen["train"])[9:]
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_overfit_batches_still_runs(trainer):
    module = Probe()
    trainer(max_epochs=2, overfit_batches=1).fit(module, Blobs(batch_size=16))
    first, second = indices(module.seen["train"])
    assert first == second


def test_a_loader_by_hand_needs_no_trainer_and_no_global_random_number():
    data = Blobs(batch_size=16)
    data.setup()
    before = torch.get_rng_state()
    batches = list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch["image"]) for batch in batches] == [16] * 4
    assert list(chain(*indices(data.loader(data.labelled_set)))) == list(range(70))
    assert set(batches[0]) == {"image", "label", "index"}


def test_a_loader_by_hand_after_a_run_gives_a_whole_epoch(trainer):
    data = Blobs(batch_size=16)
    trainer(max_epochs=1).fit(Probe(), data)
    assert len(list(data.train_dataloader())) == 4


def test_the_run_s_seed_is_that_of_seed_everything_unless_given(monkeypatch):
    def order(**kwargs):
        data = Blobs(batch_size=16, **kwargs)
        data.setup()
        return indices(data.train_dataloader())

    plain, given = order(), order(seed=3)
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert plain != given == order() == order(seed=3)


def test_no_held_out_images_means_no_validation(trainer):
    class Bare(Blobs):
        def load(self):
            super().load()
            self.val_set = None

    module = Probe()
    trainer(max_epochs=1).fit(module, Bare(batch_size=32))
    assert module.seen["val"] == []
    assert len(module.seen["train"]) == 2


def test_fewer_images_than_a_global_batch_is_an_error_before_anything_runs(trainer):
    module = Probe()
    with pytest.raises(ValueError, match=r"70 images do not fill one global batch of 128 \(batch_size=128"):
        trainer(max_epochs=1).fit(module, Blobs(batch_size=128))
    trainer().test(module, Blobs(batch_size=128), verbose=False)
    assert list(chain(*indices(module.seen["test"]))) == list(range(11))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("num_workers", -1),
        ("seed", -1),
        ("seed", "a"),
        ("views", 3),
        ("image_size", 0),
        ("image_size", (3, -1)),
    ],
)
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        Blobs(**{name: value})


def test_loaders_before_setup_say_what_is_missing():
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        Quickstart().train_dataloader()
