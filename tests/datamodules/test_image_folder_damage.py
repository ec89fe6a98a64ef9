"""ImageFolder with broken files: named, skipped up to a limit, and replaced by others."""

import os
import pickle
import shutil
import warnings

import pytest
import torch
from image_folders import SMALL, loaded, noise, truncate
from lightning.pytorch import LightningModule
from PIL import Image

from lit_ssl.datamodules import CorruptImageError, ImageFiles, ImageFolder, decode
from lit_ssl.datamodules.formats import find_images


@pytest.fixture
def broken(tmp_path):
    """Twelve noisy images, of which 4 and 5 are truncated, and 9 is no image at all."""
    root = tmp_path / "broken"
    for i in range(12):
        noise(root / f"{i:02}.jpg")
    truncate(root / "04.jpg")
    truncate(root / "05.jpg")
    (root / "09.jpg").write_bytes(b"not an image")
    return root


def dataset_of(root, **kwargs):
    paths = find_images(root)
    return ImageFiles(root, paths, torch.arange(len(paths)), size=8, channels=3, **kwargs)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_broken_file_is_an_error_that_names_it_and_the_option(broken, workers):
    data = loaded(broken, num_workers=workers, val_fraction=0)
    with pytest.raises(CorruptImageError) as caught:
        list(data.train_dataloader())
    message = str(caught.value)
    assert message.startswith(f"{broken}{os.sep}0")
    assert "no broken file is allowed by max_corrupt=0" in message
    assert "--data.max_corrupt 10" in message
    assert "\n" not in message


def test_broken_files_are_skipped_up_to_the_limit_and_named_once(broken):
    dataset = dataset_of(broken, max_corrupt=3)
    with pytest.warns(UserWarning, match=r"skipped: .*0\d\.jpg cannot be decoded .*; 1 of at most 3") as caught:
        batch = dataset.__getitems__([3, 4, 5, 9, 11])
    assert len(caught) == 3
    assert batch["index"].tolist() == batch["label"].tolist() == [3, 6, 6, 10, 11]
    assert torch.equal(batch["image"][1], decode(broken / "06.jpg", 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = dataset.__getitems__([4])
    assert again["index"].tolist() == [6]
    assert [path.name for path in dataset.corrupt] == ["04.jpg", "05.jpg", "09.jpg"]


def test_the_file_beyond_the_limit_is_an_error_every_time(broken):
    dataset = dataset_of(broken, max_corrupt=2)
    with pytest.warns(UserWarning, match="2 of at most 2"):
        dataset.__getitems__([5, 4])
    for _ in range(2):
        with pytest.raises(CorruptImageError, match=r"09\.jpg cannot .*the 3 broken files found exceed max_corrupt=2"):
            dataset.__getitems__([9])


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_stands_in_for_a_broken_file_does_not_depend_on_what_was_seen_before(broken):
    warm, cold = dataset_of(broken, max_corrupt=3), dataset_of(broken, max_corrupt=3)
    warm.__getitems__(list(range(12)))
    for i in (4, 5, 9):
        assert torch.equal(warm[i]["image"], cold[i]["image"])
        assert warm[i]["index"] == cold[i]["index"]


@pytest.mark.filterwarnings("ignore:skipped")
def test_held_out_broken_files_are_padding_rows(broken):
    batch = dataset_of(broken, max_corrupt=3, substitute=False).__getitems__([3, 4])
    assert batch["index"].tolist() == batch["label"].tolist() == [3, -1]


@pytest.mark.filterwarnings("ignore:skipped")
def test_nothing_but_broken_files_is_an_error(broken):
    dataset = ImageFiles(broken, ["04.jpg", "09.jpg"], torch.zeros(2), size=8, channels=3, max_corrupt=9)
    with pytest.raises(CorruptImageError, match="not one of the 2 files"):
        dataset[0]


def test_a_failing_disk_is_not_a_broken_file(broken, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    dataset = dataset_of(broken, max_corrupt=12)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        dataset[0]
    assert dataset.corrupt == []


@pytest.mark.filterwarnings("ignore:skipped")
def test_workers_share_the_list_of_broken_files_and_give_the_same_batches(broken):
    runs = []
    for workers in (0, 2):
        data = loaded(broken, num_workers=workers, val_fraction=0, max_corrupt=3)
        runs.append([(b["index"], b["image"]) for b in data.train_dataloader()])
        assert [path.name for path in data.train_set.corrupt] == ["04.jpg", "05.jpg", "09.jpg"]
    for (index, image), (other_index, other_image) in zip(*runs, strict=True):
        assert torch.equal(index, other_index)
        assert torch.equal(image, other_image)


def test_the_error_survives_pickling():
    assert str(pickle.loads(pickle.dumps(CorruptImageError("a: b")))) == "a: b"


class Dummy(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 3)
        self.shapes = []

    def views(self, image, key, spec, dtype):
        return [image[..., : spec.height, : spec.width].to(dtype) / 255 for _ in range(2)]

    def training_step(self, batch):
        self.shapes.append((tuple(batch["image"].shape), tuple(batch["views"][1].shape)))
        return self.layer(batch["views"][0]).square().mean()

    def validation_step(self, batch):
        self.shapes.append(len(batch["index"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:skipped")
def test_fit_on_a_folder_with_broken_files(broken, make_trainer):
    module = Dummy()
    held_out = broken.parent / "held out"
    noise(held_out / "good.png")
    shutil.copy(broken / "09.jpg", held_out)
    data = ImageFolder(broken, batch_size=4, max_corrupt=3, val_root=held_out, **SMALL)
    make_trainer(max_epochs=1).fit(module, data)
    training = [shape for shape in module.shapes if isinstance(shape, tuple)]
    assert training == [((4, 3, 16, 16), (4, 3, 14, 14))] * 3
    assert module.shapes[-1] == 1  # the broken one of the two held out is left out
