"""ImageFolder: any folder, any mode, any damage."""

import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lit_ssl.datamodules import CorruptImageError, ImageFiles, ImageFolder, decode
from lit_ssl.datamodules.image_files import EXTENSIONS, find_images

SMALL = {"image_size": 14, "load_size": 16, "num_workers": 0}


def save(path, value=128, size=(20, 18)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path, size=(64, 48)):
    """A photograph's worth of bytes: cut in half, it is truncated data and not just a missing end mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def labelled(tmp_path):
    """Three classes of 8 images; the gray value of image i of class c is 80 c + i."""
    root = tmp_path / "images"
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(8):
            save(root / name / ("deep/er" if i % 2 else "") / f"{i}.png", 80 * c + i)
    return root


def loaded(root, **kwargs):
    data = ImageFolder(root, **{**SMALL, "batch_size": 2, **kwargs})
    data.setup("fit")
    return data


def names(dataset):
    return [dataset.path(i).relative_to(dataset.root).as_posix() for i in range(len(dataset))]


# Finding and labelling


def test_labels_come_from_first_level_sub_folders(labelled):
    data = loaded(labelled)
    assert (data.class_names, data.num_classes) == (["ant", "bee", "cat"], 3)
    assert data.labelled_set is data.train_set
    for dataset in (data.train_set, data.val_set):
        batch = dataset.__getitems__(list(range(len(dataset))))
        assert torch.equal(batch["label"], batch["image"][:, 0, 0, 0].long() // 80)
    assert len(data.train_set) + len(data.val_set) == 24


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", i)
    data = loaded(tmp_path)
    assert data.class_names is data.num_classes is data.labelled_set is None
    assert data.train_set.labels.unique().tolist() == [-1]
    with pytest.raises(ValueError, match="labels='folder'"):
        loaded(tmp_path, labels="folder")


def test_labels_can_be_refused_and_one_sub_folder_is_no_label(labelled):
    assert loaded(labelled, labels="none").labelled_set is None
    assert loaded(labelled / "ant").num_classes is None
    assert loaded(labelled / "ant", labels="folder", val_fraction=0).class_names == ["deep"]


def test_images_outside_of_sub_folders_have_label_minus_one(labelled):
    save(labelled / "loose.png")
    data = loaded(labelled, val_fraction=0)
    assert data.train_set.labels[names(data.train_set).index("loose.png")] == -1
    assert data.num_classes == 3


def test_find_images_is_sorted_and_leaves_out_what_is_hidden_or_no_image(tmp_path, monkeypatch):
    for name in ("b.JPG", "a.png", "c/z.tiff", "c/a.webp", ".hidden.png", ".trash/x.png", "notes.txt", "c/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "c" / "circle")
    assert find_images(tmp_path) == ["a.png", "b.JPG", "c/a.webp", "c/z.tiff"]


def test_an_empty_folder_lists_the_extensions_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError) as caught:
        loaded(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert all(extension in str(caught.value) for extension in EXTENSIONS)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; say with --data.root"):
        loaded(tmp_path / "nowhere")


# Holding out


def test_the_split_is_fixed_and_hardly_changes_when_files_are_added(labelled):
    data = loaded(labelled, val_fraction=0.25, seed=0)
    held_out = set(names(data.val_set))
    assert len(held_out) == 6
    assert held_out.isdisjoint(names(data.train_set))
    assert set(names(loaded(labelled, val_fraction=0.25, seed=1).val_set)) == held_out
    save(labelled / "ant" / "new.png")
    assert len(held_out - set(names(loaded(labelled, val_fraction=0.25).val_set))) <= 1


def test_folders_named_train_and_val_are_the_splits(labelled, tmp_path):
    root = tmp_path / "both"
    shutil.copytree(labelled, root / "train")
    shutil.copytree(labelled / "bee", root / "val" / "bee")
    data = loaded(root)
    assert (len(data.train_set), len(data.val_set)) == (24, 8)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.val_set.labels.unique().tolist() == [1]
    os.rename(root / "val", root / "test")
    assert len(loaded(root).val_set) == 8


def test_val_root_may_lie_inside_root(labelled, tmp_path):
    shutil.copytree(labelled / "bee", tmp_path / "held" / "bee")
    assert (len(loaded(labelled, val_root=tmp_path / "held").train_set)) == 24
    data = loaded(tmp_path, val_root=tmp_path / "held", labels="none")
    assert (len(data.train_set), len(data.val_set)) == (24, 8)
    for holder in (labelled, labelled.parent):
        with pytest.raises(ValueError, match=r"val_root=.* holds root="):
            loaded(labelled, val_root=holder)
    save(tmp_path / "outer" / "inner" / "1.png")
    with pytest.raises(ValueError, match="holds all images"):
        loaded(tmp_path / "outer", val_root=tmp_path / "outer" / "inner")


def test_a_held_out_class_that_is_not_trained_on_is_named(labelled, tmp_path):
    save(tmp_path / "held" / "dog" / "1.png")
    with pytest.raises(ValueError, match=r"sub-folder 'dog', which is no class of .*: ant, bee, cat"):
        loaded(labelled, val_root=tmp_path / "held")


def test_nothing_held_out(labelled):
    data = loaded(labelled, val_fraction=0)
    assert data.val_set is None
    assert data.val_dataloader() == []


# Decoding


def gradient(size=32):
    ramp = np.linspace(0, 255, size * size).reshape(size, size)
    return np.rint(ramp).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr", "PA", "F"])
def test_every_mode_gives_the_same_picture(tmp_path, mode, channels):
    gray = gradient()
    if mode == "1":
        gray = np.where(gray > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(gray.astype(np.int32) * 257)
    elif mode == "PA":
        image = image.convert("P")
        image.info["transparency"] = bytes([255] * 256)
    else:
        image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else image.convert(mode)
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "YCbCr", "I", "F") else "x.png")
    image.save(path)
    out = decode(path, 32, channels)
    assert (out.shape, out.dtype) == ((channels, 32, 32), torch.uint8)
    for channel in out[:3]:
        assert np.abs(channel.numpy().astype(int) - gray).max() <= 1
    if channels == 4:
        assert out[3].unique().tolist() == [255]


def test_transparent_pixels_are_white_or_kept(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    rgb = decode(tmp_path / "x.png", 8, 3)
    assert rgb[:, 0, 0].tolist() == [10, 20, 30]
    assert rgb[:, 7, 7].tolist() == [255, 255, 255]
    assert decode(tmp_path / "x.png", 8, 4)[3, :, 0].tolist() == [255] * 4 + [0] * 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(64, 64), (640, 640)])  # the larger is decoded at a fraction
def test_exif_orientation_is_applied(tmp_path, orientation, size):
    upright = Image.new("L", size)
    upright.paste(255, (0, 0, size[0], size[1] // 2))  # bright above
    turned = upright.rotate({1: 0, 3: 180, 6: 90, 8: 270}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "x.jpg", exif=exif, quality=95)
    out = decode(tmp_path / "x.jpg", 32, 1)[0].float()
    assert out[:12].mean() > 250
    assert out[20:].mean() < 5


def test_the_central_square_is_taken(tmp_path):
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 10, 3).unique().tolist() == [200]
    assert decode(tmp_path / "x.png", 30, 3).shape == (3, 30, 30)


def test_a_large_jpeg_is_close_to_its_full_decoding(tmp_path):
    ramp = np.linspace(0, 255, 1024)
    picture = (ramp[:, None] * 0.5 + ramp[None] * 0.5).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    full = Image.open(tmp_path / "x.jpg").resize((64, 64), Image.Resampling.BICUBIC)
    difference = decode(tmp_path / "x.jpg", 64, 1)[0].int() - torch.from_numpy(np.array(full)).int()
    assert difference.abs().max() <= 2


# Broken files


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
    with pytest.warns(UserWarning, match=r"skipped: .*04\.jpg cannot be decoded .*; 1 of at most 3") as caught:
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


# All of it


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


def test_sizes_and_statistics(tmp_path):
    data = ImageFolder(tmp_path)
    assert (data.spec.size, data.spec.channels, data.load_size) == ((224, 224), 3, 256)
    assert data.spec.mean == (0.485, 0.456, 0.406)
    gray = ImageFolder(tmp_path, channels=1, image_size=(28, 56), mean=[0.2], std=[0.1])
    assert (gray.spec.size, gray.spec.mean, gray.spec.std, gray.load_size) == ((28, 56), (0.2,), (0.1,), 64)
    assert ImageFolder(tmp_path).default_workers() >= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 2),
        ("labels", "files"),
        ("val_fraction", 1.0),
        ("val_fraction", "half"),
        ("max_corrupt", -1),
        ("load_size", 0),
        ("mean", [0.5]),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        ImageFolder(tmp_path, **{name: value})
