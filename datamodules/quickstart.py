"""Ten thousand real images inside the package: a run on a fresh machine needs no download."""

from __future__ import annotations

import gzip
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from lit_ssl.random import permuted
from lit_ssl.views import View

from .dataset import ImageTensors
from .module import ImageDataModule
from .standard import FashionMNIST

__all__ = ["Quickstart"]

_SPLIT_SEED = 2017
_HELD_OUT_PER_CLASS = 200


def _read_idx(name: str) -> Tensor:
    """A gzipped IDX file of bytes (http://yann.lecun.com/exdb/mnist): uint8, shaped as its header says."""
    data = gzip.decompress(files(__package__).joinpath("embedded", name).read_bytes())
    dimensions = data[3]
    shape = [int.from_bytes(data[4 + 4 * d : 8 + 4 * d], "big") for d in range(dimensions)]
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8, offset=4 + 4 * dimensions)).reshape(shape)


class Quickstart(ImageDataModule):
    """The 10,000-image test split of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence), embedded.

    8,000 images train and 2,000 are held out: 800 and 200 of each of the ten classes. The split is the same in every
    run, whatever its seed. Images are gray, 28 x 28.

    Args:
        batch_size, num_workers, seed, views, image_size: see :class:`ImageDataModule`.
    """

    native = FashionMNIST.native

    def __init__(
        self,
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int | None = None,
        views: View | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, views=views, image_size=image_size)

    def load(self) -> None:
        images = _read_idx("fashion-mnist-t10k-images-idx3-ubyte.gz")[:, None]
        labels = _read_idx("fashion-mnist-t10k-labels-idx1-ubyte.gz").to(torch.int64)
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(10):
            members = (labels == label).nonzero().flatten()
            order = permuted(torch.arange(len(members)), len(members), _SPLIT_SEED, f"quickstart/{label}")
            held_out[members[order[:_HELD_OUT_PER_CLASS]]] = True
        self.train_set = self.labelled_set = ImageTensors(images[~held_out], labels[~held_out])
        self.val_set = ImageTensors(images[held_out], labels[held_out])
        self.class_names = list(datasets.FashionMNIST.classes)
        self.num_classes = 10
