import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from matplotlib.image import imread

from lit_ssl.callbacks import AugmentedViews, EmbeddingMap, save_picture
from lit_ssl.callbacks.augmented_views import grid
from lit_ssl.callbacks.embedding_map import principal_plane


def pixels(path):
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def test_a_picture_is_a_file_of_these_pixels(make_trainer, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    trainer = make_trainer()
    path = save_picture(trainer, "noise", lambda: image)
    assert path == tmp_path / "pictures" / "noise-step0.png"
    assert (pixels(path) == image).all()
    assert [p.name for p in path.parent.iterdir()] == ["noise-step0.png"]
    assert (pixels(save_picture(trainer, "tensor", lambda: torch.from_numpy(image))) == image).all()


def test_a_figure_is_drawn_without_pyplot(make_trainer):
    import sys

    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    path = save_picture(make_trainer(), "figure", lambda: figure)
    assert pixels(path).shape == (50, 100, 3)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_it_lies_beside_the_metrics(make_trainer, tmp_path):
    trainer = make_trainer(logger=CSVLogger(tmp_path / "logs", name="run", version=3))
    path = save_picture(trainer, "noise", lambda: np.zeros((2, 2, 3), np.uint8))
    assert path == tmp_path / "logs" / "run" / "version_3" / "pictures" / "noise-step0.png"


def test_nothing_is_made_in_fast_dev_run(make_trainer, tmp_path):
    assert save_picture(make_trainer(fast_dev_run=True), "x", lambda: pytest.fail("made")) is None
    assert not (tmp_path / "pictures").exists()


def test_what_is_no_picture_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"uint8 array \(H, W, 3\), got float64 \(2, 2\)"):
        save_picture(make_trainer(), "x", lambda: np.zeros((2, 2)))


def test_tensorboard_and_wandb_show_it(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    image = np.full((4, 6, 3), 200, np.uint8)
    board, wandb_logger = TensorBoardLogger(tmp_path / "tb"), WandbLogger(save_dir=tmp_path, offline=True)
    trainer = make_trainer(logger=[board, wandb_logger])
    save_picture(trainer, "noise", lambda: image)
    board.experiment.flush()
    folder = wandb_logger.experiment.dir
    wandb_logger.experiment.finish()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir).Reload()
    (shown,) = events.Images("pictures/noise")
    assert (shown.height, shown.width) == (4, 6)
    from pathlib import Path

    (media,) = Path(folder).rglob("media/images/pictures/noise*.png")
    assert (pixels(media) == image).all()


def test_grid_shows_each_image_and_its_views():
    image = torch.rand(3, 1, 16, 16)
    views = [torch.rand(3, 1, 16, 16), torch.rand(3, 1, 8, 8)]
    picture = grid([image, *views], height=16)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3 * 20, 3 * 20, 3)
    expected = (image[1, 0] * 255).round().to(torch.uint8)
    assert torch.equal(picture[22:38, 2:18], expected[..., None].expand(-1, -1, 3))
    small = (views[1][2, 0] * 255).round().to(torch.uint8)
    assert torch.equal(picture[42:58:2, 42:58:2, 0], small)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_grid_takes_any_number_of_channels(channels):
    image = torch.rand(2, channels, 8, 8)
    picture = grid([image], height=8)
    shown = 3 if channels == 1 else min(channels, 3)
    source = image[0, [0, 0, 0] if channels == 1 else list(range(shown))]
    assert torch.equal(picture[2:10, 2:10, :shown], (source * 255).round().to(torch.uint8).permute(1, 2, 0))


def test_augmented_views_are_those_of_the_batch(method, stripes, make_trainer, tmp_path):
    seen = {}

    class Spy(AugmentedViews):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                seen["views"] = [view[:4].clone() for view in batch["views"]]
                seen["image"] = batch["image"][:4] / 255
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    make_trainer(max_epochs=5, callbacks=[Spy(samples=4, every_n_epochs=2)]).fit(method(), datamodule=stripes())
    folder = tmp_path / "pictures"
    assert sorted(p.name for p in folder.iterdir()) == [f"augmented-views-step{n}.png" for n in (0, 16, 8)]
    picture = pixels(folder / "augmented-views-step0.png")
    assert (picture == grid([seen["image"], *seen["views"]]).numpy()).all()


def test_principal_plane_is_the_plane_of_most_variance():
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 6, generator=generator) * torch.tensor([3.0, 2, 1, 1, 1, 1]))
    where, share = principal_plane(x * 5)
    centred = (x - x.mean(0)).double()
    _, singular, basis = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(where.abs(), (centred @ basis[:2].T).abs())
    torch.testing.assert_close(share, singular[:2] ** 2 / (singular**2).sum())
    assert torch.equal(principal_plane(x)[0], principal_plane(x)[0])


def test_principal_plane_of_one_dimension():
    where, share = principal_plane(torch.randn(9, 1))
    assert where.shape == (9, 2)
    assert share.shape == (2,)


@pytest.mark.parametrize("labels", ["train", None])
def test_the_map_is_drawn_every_n_epochs_and_at_the_end(labels, method, stripes, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=3, callbacks=[EmbeddingMap(max_samples=30, every_n_epochs=2)])
    trainer.fit(method(), datamodule=stripes(labels))
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["embedding-map-step12.png", "embedding-map-step8.png"]
    assert len(np.unique(pixels(tmp_path / "pictures" / names[0]).reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentedViews(samples=0), "samples must be an integer of at least 1, got 0"),
        (lambda: AugmentedViews(max_views=0), "max_views must be"),
        (lambda: AugmentedViews(every_n_epochs=0), "every_n_epochs must be"),
        (lambda: EmbeddingMap(max_samples=1), "max_samples must be an integer of at least 2, got 1"),
        (lambda: EmbeddingMap(every_n_epochs=True), "every_n_epochs must be an integer of at least 1, got True"),
    ],
)
def test_arguments_are_validated(make, message):
    with pytest.raises(ValueError, match=message):
        make()
