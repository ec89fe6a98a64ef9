import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.image import imread

from lit_ssl import MAE, VAE, Fusion, ImageSpec, SSLModule
from lit_ssl.callbacks import LatentSamples, LatentTraversals, Reconstructions
from lit_ssl.callbacks.augmented_views import grid
from lit_ssl.callbacks.drawing import labelled
from lit_ssl.views import SingleView, clean


def pixels(path):
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


SMALL = {
    MAE: {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    Fusion: {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "projector_hidden": 16},
    VAE: {"binarize": "dynamic", "decoder_width": 8},
}


def watchers():
    return [Reconstructions(every_n_epochs=1), LatentTraversals(every_n_epochs=1), LatentSamples(every_n_epochs=1)]


@pytest.fixture
def vae(tiny):
    return lambda **kwargs: VAE(**{**tiny, "latent_dim": 5, "decoder_hidden": (16,), **kwargs})


class Masked(SSLModule):
    """Any method: three columns of its own making, and what it was asked for."""

    view_count = 1

    def __init__(self, able=True, **kwargs):
        super().__init__(views=SingleView(), **kwargs)
        self.able, self.calls = able, []

    def build_heads(self):
        self.head = torch.nn.Linear(self.num_features, 1)

    def loss(self, batch):
        return {"loss": self.head(self.embed(batch["views"][0])).square().mean()}

    def reconstruct(self, image, key):
        if not self.able:
            raise MisconfigurationException("nothing to reconstruct with")
        self.calls.append((image, key))
        x = clean(image, self.spec)
        return {"input": x, "masked": x * 0.5, "output": 1 - x}


def test_weights_are_bit_identical_with_and_without_pictures(vae, stripes, make_trainer, tmp_path):
    def run(folder, callbacks):
        torch.manual_seed(7)
        module = vae(binarize="dynamic", kl_warmup_epochs=1)
        make_trainer(max_epochs=2, default_root_dir=tmp_path / folder, callbacks=callbacks).fit(module, stripes())
        return module, torch.rand(3)

    (alone, draws), (watched, watched_draws) = run("alone", []), run("watched", watchers())
    assert torch.equal(draws, watched_draws)
    assert alone.training == watched.training
    assert alone.state_dict().keys() == watched.state_dict().keys()
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in alone.state_dict().items())
    names = ("latent-samples", "latent-traversals", "reconstructions")
    found = sorted(path.name for path in (tmp_path / "watched" / "pictures").iterdir())
    assert found == [f"{name}-step{step}.png" for name in names for step in (4, 8)]


def test_the_picture_is_the_methods_own_columns(vae, stripes, make_trainer, tmp_path):
    seen = {}

    class Seen(VAE):
        def reconstruct(self, image, key):
            seen.update(image=image, key=key, columns=super().reconstruct(image, key))
            return seen["columns"]

    module = Seen(**vae(binarize="dynamic").hparams)
    data = stripes()
    make_trainer(callbacks=[Reconstructions(samples=6)]).fit(module, datamodule=data)
    assert seen["image"].dtype == torch.uint8
    assert seen["key"].device.type == "cpu"
    chosen = [0, 1, 16, 17, 32, 33]  # two of each of three batches
    assert torch.equal(seen["image"], data.val_set.images[chosen])
    picture = pixels(tmp_path / "pictures" / "reconstructions-step4.png")
    expected = grid(list(seen["columns"].values())).numpy()
    assert (picture[-expected.shape[0] :] == expected).all()
    assert picture.shape[0] > expected.shape[0]  # names above
    assert (picture[: -expected.shape[0]] < 128).any()


def test_any_method_with_reconstruct_and_images_of_any_size(make_trainer, tmp_path):
    image = torch.randint(256, (10, 3, 20, 14), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    loader = torch.utils.data.DataLoader(image, batch_size=5)
    module = Masked(backbone="mlp", spec=ImageSpec((10, 7), 3))
    make_trainer(max_epochs=3, callbacks=[Reconstructions(samples=3, every_n_epochs=2)]).fit(module, loader, loader)
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        "reconstructions-step4.png",
        "reconstructions-step6.png",
    ]
    (first, key), (again, same_key) = module.calls
    assert first.shape == (3, 3, 10, 7)
    assert torch.equal(first, again)
    assert torch.equal(key, same_key)  # the same masks at every drawing
    x = clean(first, module.spec)
    expected = grid([x, x * 0.5, 1 - x]).numpy()
    assert (pixels(tmp_path / "pictures" / "reconstructions-step6.png")[-expected.shape[0] :] == expected).all()


@pytest.mark.parametrize("kind", [MAE, Fusion, VAE])
@pytest.mark.parametrize("backbone", ["mlp", "vit_tiny_patch16_224"])
def test_every_method_that_reconstructs_is_drawn(kind, backbone, stripes, make_trainer, tmp_path):
    options = {"hidden": (32, 16)} if backbone == "mlp" else {"embed_dim": 32, "depth": 1, "num_heads": 2}
    data = stripes()
    module = kind(backbone=backbone, backbone_options=options, **SMALL[kind])
    make_trainer(limit_train_batches=1, callbacks=[Reconstructions(samples=4)]).fit(module, datamodule=data)
    images = data.val_set.images[[0, 1, 16, 17]]  # two of each batch, four in all
    columns = module.reconstruct(images, torch.arange(4))
    assert list(columns) == ["input", "binarised" if kind is VAE else "masked", "output"]
    assert all(0 <= x.min() <= x.max() <= 1 and x.shape == (4, 1, 16, 16) for x in columns.values())
    picture = pixels(tmp_path / "pictures" / "reconstructions-step1.png")
    assert picture.shape == (18 + 4 * 68, 3 * 68, 3)
    assert (picture[18:, :68] == grid([images / 255]).numpy()).all()
    assert (picture[18:, 136:] != picture[18:, :68]).any()


def test_a_method_that_cannot_is_let_run(spec, tiny, loader, make_trainer, tmp_path):
    module = Masked(able=False, spec=spec, **tiny)
    trainer = make_trainer(max_epochs=2, callbacks=[Reconstructions(every_n_epochs=1)])
    with pytest.warns(UserWarning, match="no pictures of reconstructions: nothing to reconstruct with"):
        trainer.fit(module, loader, loader)
    assert trainer.global_step == 8
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("callback", "needed"),
    [(Reconstructions(), "reconstruct"), (LatentTraversals(), "decode"), (LatentSamples(), "sample")],
)
def test_what_a_callback_needs_is_named(callback, needed, method, stripes, make_trainer):
    assert callback.needs == needed
    with pytest.raises(MisconfigurationException, match=rf"{type(callback).__name__} .*{needed}\(\), got SimCLR"):
        make_trainer(callbacks=[callback]).fit(method(), datamodule=stripes())


def test_a_labelled_picture_holds_the_picture_untouched():
    picture = torch.randint(256, (3 * 41, 2 * 37, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert (labelled(picture) == picture.numpy()).all()
    for columns, rows in (([], ["a", "b", "c"]), (["left", "right"], []), (["left", "right"], ["a", "b", "c"])):
        image = labelled(picture, columns, rows)
        top, left = 18 * bool(columns), 36 * bool(rows)
        assert image.shape == (top + 123, left + 74, 3)
        assert (image[top:, left:] == picture.numpy()).all()
        names = image.copy()
        names[top:, left:] = 255
        for i in range(len(columns)):
            assert (names[:top, left + 37 * i : left + 37 * (i + 1)] < 128).any()
        for i in range(len(rows)):
            assert (names[top + 41 * i : top + 41 * (i + 1), :left] < 128).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ({"every_n_epochs": 0.5}, "every_n_epochs must be an integer of at least 1, got 0.5"),
    ],
)
def test_reconstructions_validates_its_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reconstructions(**arguments)
