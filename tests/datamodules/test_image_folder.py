"""ImageFolder: finding, labelling and holding out, sizes and arguments."""

import os
import shutil

import pytest
import torch
from image_folders import loaded, names, save

from lit_ssl.datamodules import ImageFolder
from lit_ssl.datamodules.formats import EXTENSIONS, find_images


@pytest.fixture
def labelled(tmp_path):
    """Three classes of 8 images; the gray value of image i of class c is 80 c + i."""
    root = tmp_path / "images"
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(8):
            save(root / name / ("deep/er" if i % 2 else "") / f"{i}.png", 80 * c + i)
    return root


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


# Arguments


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
        ("clean_images", "no"),
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
