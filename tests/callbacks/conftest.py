import pytest
import torch

from lit_ssl import ImageSpec, SimCLR
from lit_ssl.datamodules import ImageDataModule, ImageTensors


def striped(n, seed):
    """Gray 16 x 16 images whose class, of four, is the place of a bright stripe under noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 4
    image = torch.rand(n, 1, 16, 16, generator=generator) * 0.6
    for c in range(4):
        image[label == c, :, 4 * c : 4 * c + 4] += 0.4
    return (image * 255).to(torch.uint8), label


class Stripes(ImageDataModule):
    """64 labelled images to train on and 40 held out; ``labels`` may be 'train', 'apart' (a set of its own) or None."""

    native = ImageSpec(16, 1)

    def __init__(self, labels="train", **kwargs):
        super().__init__(**{"batch_size": 16, **kwargs})
        self.labels = labels

    def load(self):
        image, label = striped(64, 0)
        held, held_label = striped(40, 1)
        self.train_set = ImageTensors(image, label if self.labels == "train" else None)
        self.val_set = ImageTensors(held, held_label if self.labels else None)
        if self.labels:
            self.num_classes, self.class_names = 4, ["top", "upper", "lower", "bottom"]
            self.labelled_set = self.train_set if self.labels == "train" else ImageTensors(*striped(24, 2))


@pytest.fixture
def stripes():
    return Stripes


@pytest.fixture
def method(tiny):
    return lambda **kwargs: SimCLR(**{**tiny, "warmup_epochs": 0, **kwargs})
