"""Views from crops, in a run: by key, on any number of workers, through a kill, and only where views are recipes."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from photos import SPEC, expected_views, write_photos

from lit_ssl import SimCLR
from lit_ssl.callbacks import AugmentedViews, OnlineLinearProbe, augmented_views
from lit_ssl.callbacks.health_replay import rebuilt
from lit_ssl.datamodules import ImageFolder, ImageText
from lit_ssl.views import BYOLViews, MultiCropViews, SimCLRViews, SLIPViews

VIEWS = SimCLRViews(blur=0.5)


class Keep(LightningModule):
    """Learns next to nothing, and keeps what it was given."""

    def __init__(self, views=VIEWS):
        super().__init__()
        self.views, self.spec = views, SPEC
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_batches, self.val_batches = [], []

    def training_step(self, batch):
        self.train_batches.append(batch)
        return self.weight * batch["views"][0].mean()

    def validation_step(self, batch):
        self.val_batches.append(batch)

    def predict_step(self, batch):
        return sorted(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def folder(tmp_path):
    return write_photos(tmp_path / "photos")


def folder_data(folder, **kwargs):
    sizes = {"image_size": 14, "load_size": 16, "batch_size": 3}
    return ImageFolder(folder, **{**sizes, "num_workers": 0, "seed": 9, "val_fraction": 0.25, **kwargs})


def assert_views(batch, dataset, epoch, views):
    for row, i in enumerate(batch["index"].tolist()):
        wanted = expected_views(dataset.path(i), i, epoch, 9, views)
        assert len(batch["views"]) == len(wanted)
        for view, expected in zip(batch["views"], wanted, strict=True):
            torch.testing.assert_close(view[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_clean_images_views_and_validation_are_the_same(make_trainer, folder, workers):
    runs = []
    for clean_images in (True, False):
        module, data = Keep(), folder_data(folder, num_workers=workers, clean_images=clean_images)
        make_trainer(max_epochs=1).fit(module, data)
        runs.append(module)
    for batch, other in zip(runs[0].train_batches, runs[1].train_batches, strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch["views"], other["views"], strict=True))
        assert batch["image"].shape[2:] == (16, 16)
        assert torch.equal(other["image"], other["crops/view"][:, 0])
    for batch, other in zip(runs[0].val_batches, runs[1].val_batches, strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_without_clean_images_views_cannot_change_while_a_loader_is_in_use(make_trainer, folder):
    class Change(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.views = SimCLRViews(scale=(0.5, 1.0))

    trainer = make_trainer(max_epochs=1, callbacks=[Change()])
    with pytest.raises(RuntimeError, match="clean_images=False left nothing"):
        trainer.fit(Keep(), folder_data(folder, clean_images=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_those_that_seed_epoch_and_index_draw_from_the_whole_image(make_trainer, folder, workers):
    module, data = Keep(), folder_data(folder, num_workers=workers)
    make_trainer(max_epochs=2).fit(module, data)
    assert len(module.train_batches) == 6
    for place, batch in enumerate(module.train_batches):
        assert batch["image"].shape == (3, 3, 16, 16)
        assert_views(batch, data.train_set, place // 3, VIEWS)
    first, second = module.val_batches[-2:]  # of three images in batches of three, with the sanity check before
    assert_views(first, data.val_set, -1, VIEWS)
    assert all(torch.equal(a, b) for a, b in zip(first["views"], second["views"], strict=True))


@pytest.mark.parametrize("views", [MultiCropViews(local_views=2, blur=(0.5,) * 3), BYOLViews()])
def test_views_given_to_the_data_are_cropped_too(make_trainer, folder, views):
    module, data = Keep(views=None), folder_data(folder, views=views)
    make_trainer(limit_val_batches=0).fit(module, data)
    for batch in module.train_batches:
        assert_views(batch, data.train_set, 0, views)


class Kill(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 5:
            raise RuntimeError("killed")


@pytest.mark.parametrize(("workers", "clean_images"), [(0, True), (1, True), (0, False)])
def test_a_resume_in_mid_epoch_makes_the_same_views_bit_by_bit(make_trainer, folder, tmp_path, workers, clean_images):
    def run(name, resume=None, *callbacks):
        module = Keep()
        save = ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            max_epochs=2, callbacks=[save, *callbacks], enable_checkpointing=True, limit_val_batches=0
        )
        try:
            data = folder_data(folder, num_workers=workers, clean_images=clean_images)
            trainer.fit(module, data, ckpt_path=resume)
        except RuntimeError as error:
            assert "killed" in str(error)  # noqa: PT017
        return module

    whole, killed = run("whole"), run("killed", None, Kill())
    assert len(killed.train_batches) == 5
    resumed = run("resumed", str(tmp_path / "killed" / "step=4.ckpt"))
    assert len(resumed.train_batches) == 2
    for batch, other in zip(whole.train_batches[4:], resumed.train_batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch["views"], other["views"], strict=True))
    assert torch.equal(whole.weight, resumed.weight)


def test_views_that_are_no_recipes_are_made_from_the_square(make_trainer, folder):
    def own(image, key, spec, dtype):
        assert image.shape[1:] == (3, 18, 18)
        return [image.to(dtype) / 255]

    module = Keep(own)
    make_trainer(limit_val_batches=0).fit(module, folder_data(folder, load_size=18))
    for batch in module.train_batches:
        assert set(batch) == {"image", "label", "index", "key", "views"}
        assert torch.equal(batch["views"][0], batch["image"] / 255)


class Exchange(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.views = VIEWS if trainer.current_epoch == 0 else BYOLViews()


def test_views_that_are_exchanged_while_loaders_run_are_made_from_the_square(make_trainer, folder):
    module, data = Keep(), folder_data(folder)
    make_trainer(max_epochs=2, limit_val_batches=0, callbacks=[Exchange()]).fit(module, data)
    assert_views(module.train_batches[0], data.train_set, 0, VIEWS)
    batch = module.train_batches[-1]
    plain = BYOLViews()(batch["image"], batch["key"], SPEC, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(batch["views"], plain, strict=True))


def test_predicting_crops_nothing_and_overfitting_still_runs(make_trainer, folder):
    module, data = Keep(), folder_data(folder)
    assert make_trainer().predict(module, data) == [["image", "index", "key", "label"]]
    make_trainer(max_epochs=2, overfit_batches=1).fit(module, data)
    assert all(len(batch["views"]) == 2 for batch in module.train_batches)


class Rebuild(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        again = rebuilt(trainer, pl_module, {name: value for name, value in batch.items() if name != "views"})
        assert all(torch.equal(a, b) for a, b in zip(batch["views"], again["views"], strict=True))
        self.ran = True


@pytest.mark.parametrize("clean_images", [True, False])
def test_callbacks_see_the_views_and_can_make_them_again(make_trainer, folder, monkeypatch, clean_images):
    shown, rebuild = [], Rebuild()
    monkeypatch.setattr(augmented_views, "save_picture", lambda trainer, name, make: make())
    monkeypatch.setattr(augmented_views, "grid", shown.append)
    module = Keep()
    trainer = make_trainer(limit_val_batches=0, callbacks=[AugmentedViews(samples=3), rebuild])
    trainer.fit(module, folder_data(folder, clean_images=clean_images))
    assert rebuild.ran
    ((image, *views),) = shown
    assert torch.equal(image, module.train_batches[0]["image"] / 255)
    assert all(torch.equal(a, b) for a, b in zip(views, module.train_batches[0]["views"], strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_images_with_captions_are_cropped_too(make_trainer, folder, packed):
    source = {}
    if packed:
        wds = pytest.importorskip("webdataset")
        source = {"shards": "s-00.tar"}
        with wds.ShardWriter(str(folder / "s-%02d.tar"), maxcount=99, verbose=False) as sink:
            for i in range(12):
                sample = {"jpg": (folder / f"{i:02}.jpg").read_bytes(), "txt": f"caption {i}"}
                sink.write({"__key__": f"{i:02}", **sample})
    else:
        rows = [f"{i:02}.jpg,caption {i}" for i in range(12)]
        (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    views, module = SLIPViews(), Keep(SLIPViews())
    sizes = {"image_size": 14, "load_size": 16, "batch_size": 4}
    data = ImageText(folder, **sizes, **source, num_workers=0, seed=9, val_fraction=0, clean_images=packed)
    make_trainer().fit(module, data)
    for batch in module.train_batches:
        assert batch["text"] == [f"caption {i}" for i in batch["index"].tolist()]
        assert batch["image"].shape[2:] == ((16, 16) if packed else (14, 14))
        for row, i in enumerate(batch["index"].tolist()):
            for view, wanted in zip(
                batch["views"], expected_views(folder / f"{i:02}.jpg", i, 0, 9, views), strict=True
            ):
                torch.testing.assert_close(view[row], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clean_images", [True, False])
def test_a_method_and_a_probe_learn_from_them(make_trainer, folder, clean_images):
    for i, path in enumerate(sorted(folder.iterdir())):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        path.rename(folder / "ab"[i % 2] / path.name)
    module = SimCLR(backbone="mlp", backbone_options={"hidden": (32, 16)}, projector_hidden=16, projector_dim=8)
    trainer = make_trainer(max_epochs=2, precision="64-true", callbacks=[OnlineLinearProbe()])
    trainer.fit(module, folder_data(folder, clean_images=clean_images))
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert 0 <= trainer.callback_metrics["probe/val_acc"] <= 1
