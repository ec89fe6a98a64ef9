"""Folders of images to read, whole and damaged."""

import numpy as np
from PIL import Image

from lit_ssl.datamodules import ImageFolder

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


def loaded(root, **kwargs):
    data = ImageFolder(root, **{**SMALL, "batch_size": 2, **kwargs})
    data.setup("fit")
    return data


def names(dataset):
    return [dataset.path(i).relative_to(dataset.root).as_posix() for i in range(len(dataset))]
