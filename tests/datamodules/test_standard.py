"""Quickstart, and the data sets that torchvision reads, from small files in torchvision's layout."""

import gzip
import pickle
from importlib.resources import files

import numpy as np
import pytest
import torch
import torchvision

from lit_ssl.datamodules import CIFAR10, CIFAR100, MNIST, STL10, FashionMNIST, Quickstart

ALL = [MNIST, FashionMNIST, CIFAR10, CIFAR100, STL10]


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def unchecked(monkeypatch):
    """torchvision compares CIFAR's and STL-10's files with known digests; these are not the files."""
    for name in ("cifar", "stl10"):
        module = getattr(torchvision.datasets, name)
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: __import__("os").path.isfile(path))


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
def test_mnist_and_fashion_mnist(cls, tmp_path, random):
    raw = tmp_path / cls.__name__ / "raw"
    raw.mkdir(parents=True)
    made = {}
    for split, n in (("train", 30), ("t10k", 12)):
        made[split] = random.integers(0, 256, (n, 28, 28), np.uint8)
        write_idx(raw / f"{split}-images-idx3-ubyte", made[split])
        write_idx(raw / f"{split}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    data = cls(tmp_path, batch_size=10)
    data.prepare_data()
    data.setup("fit")
    assert np.array_equal(data.train_set.images[:, 0].numpy(), made["train"])
    assert np.array_equal(data.val_set.images[:, 0].numpy(), made["t10k"])
    assert data.labelled_set is data.train_set
    assert data.train_set.labels.tolist() == [i % 10 for i in range(30)]
    assert (data.num_classes, len(data.class_names)) == (10, 10)
    assert [batch["image"].shape for batch in data.train_dataloader()] == [(10, 1, 28, 28)] * 3


@pytest.mark.parametrize(("cls", "classes"), [(CIFAR10, 10), (CIFAR100, 100)])
def test_cifar(cls, classes, tmp_path, random, unchecked):
    known = getattr(torchvision.datasets, cls.__name__)
    folder = tmp_path / known.base_folder
    folder.mkdir()
    key = "labels" if classes == 10 else "fine_labels"
    made = []
    for name, _ in known.train_list + known.test_list:
        made.append(random.integers(0, 256, (6, 3072), np.uint8))
        (folder / name).write_bytes(pickle.dumps({"data": made[-1], key: [classes - 1, 0, 1, 2, 3, 4]}))
    names = [f"class {i}" for i in range(classes)]
    (folder / known.meta["filename"]).write_bytes(pickle.dumps({known.meta["key"]: names}))
    data = cls(tmp_path, batch_size=3)
    data.setup("fit")
    assert np.array_equal(data.train_set.images.flatten(1).numpy(), np.concatenate(made[:-1]))
    assert np.array_equal(data.val_set.images.flatten(1).numpy(), made[-1])
    assert data.val_set.labels.tolist() == [classes - 1, 0, 1, 2, 3, 4]
    assert (data.num_classes, data.class_names) == (classes, names)


def test_stl10_pretrains_on_its_unlabelled_split(tmp_path, random, unchecked):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    made = {split: random.integers(0, 256, (n, 3, 96, 96), np.uint8) for split, n in zip("utv", (8, 5, 4), strict=True)}
    for split, name in zip("utv", ("unlabeled", "train", "test"), strict=True):
        made[split].transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # the files hold columns first
        if split != "u":
            (np.arange(len(made[split])) % 10 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    data = STL10(tmp_path, batch_size=4)
    data.setup("fit")
    batch = data.train_set.__getitems__([7, 2])
    assert np.array_equal(batch["image"].numpy(), made["u"][[7, 2]])
    assert batch["label"].tolist() == [-1, -1]
    assert np.array_equal(data.labelled_set.images.numpy(), made["t"])
    assert data.labelled_set.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(data.val_set.images.numpy(), made["v"])
    assert (data.num_classes, len(data.train_dataloader())) == (10, 2)


@pytest.mark.parametrize("cls", ALL)
def test_missing_data_says_what_where_and_how(cls, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        cls(tmp_path).setup("fit")
    message = str(caught.value)
    assert message.startswith(f"{cls.__name__}: looked in {tmp_path / cls.folder}")
    assert "--data.download true" in message
    assert "--data.root" in message


def test_damaged_files_are_reported_as_such(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(b"no")
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"no")
    with pytest.raises(FileNotFoundError, match=r"did not find it whole \(\w+"):
        MNIST(tmp_path).setup()


@pytest.mark.parametrize("cls", ALL)
def test_a_failing_download_is_one_clear_line(cls, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(RuntimeError) as caught:
        cls(tmp_path, download=True).prepare_data()
    message = str(caught.value)
    assert message.startswith(f"{cls.__name__}: the download to {tmp_path / cls.folder} failed")
    assert "Name or service not known" in message
    assert "\n" not in message


@pytest.mark.parametrize("cls", ALL)
def test_nothing_is_downloaded_unasked(cls, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("went to the internet"))
    cls(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cls", [*ALL, Quickstart])
def test_spec_is_known_at_construction_and_image_size_changes_only_its_size(cls):
    data, small = cls(), cls(image_size=16)
    assert data.spec.size == data.spec.size == cls.native.size
    assert small.spec.size == (16, 16)
    assert (small.spec.channels, small.spec.mean, small.spec.std) == (
        data.spec.channels,
        data.spec.mean,
        data.spec.std,
    )
    assert cls(image_size=[8, 12]).spec.size == (8, 12)


def test_each_data_set_has_statistics_of_its_own():
    statistics = {(cls.native.mean, cls.native.std) for cls in ALL}
    assert len(statistics) == len(ALL)


def test_quickstart_splits_the_embedded_images_by_class():
    data = Quickstart()
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (8000, 2000)
    assert data.train_set.labels.bincount().tolist() == [800] * 10
    assert data.val_set.labels.bincount().tolist() == [200] * 10
    assert data.class_names[9] == "Ankle boot"
    flat = torch.cat([data.train_set.images, data.val_set.images]).flatten(1)
    assert len(flat.unique(dim=0)) == 10_000  # none twice: nothing held out is trained on
    mean = flat.double().mean() / 255
    assert abs(mean - data.spec.mean[0]) < 2e-3
    assert abs((flat.double() / 255).std() - data.spec.std[0]) < 2e-3


def test_quickstart_split_does_not_depend_on_the_seed():
    first, second = Quickstart(seed=0), Quickstart(seed=1)
    first.setup()
    second.setup()
    assert torch.equal(first.val_set.images, second.val_set.images)
    assert torch.equal(first.train_set.labels, second.train_set.labels)
    orders = [next(iter(data.train_dataloader()))["index"] for data in (first, second)]
    assert not torch.equal(*orders)


def test_embedded_files_come_with_their_licence():
    folder = files("lit_ssl.datamodules") / "embedded"
    licence = (folder / "LICENSE.fashion-mnist").read_text(encoding="utf-8")
    assert "The MIT License (MIT) Copyright © 2017 Zalando SE" in licence
    assert "Permission is hereby granted" in licence
    packed = (folder / "fashion-mnist-t10k-images-idx3-ubyte.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # no time stamp
    assert len(gzip.decompress(packed)) == 16 + 10_000 * 784
