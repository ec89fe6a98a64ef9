"""ImageTensors and Loader."""

import pytest
import torch

from lit_ssl.datamodules import ImageTensors, Loader, ShardedSampler
from lit_ssl.datamodules.dataset import collate


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)
    return ImageTensors(torch.randint(0, 256, (40, 3, 5, 4), dtype=torch.uint8, generator=generator), torch.arange(40))


def test_a_batch_holds_the_rows_asked_for(dataset):
    batch = dataset.__getitems__([7, 0, 39])
    assert torch.equal(batch["image"], dataset.images[[7, 0, 39]])
    assert batch["label"].tolist() == batch["index"].tolist() == [7, 0, 39]
    assert batch["label"].dtype == batch["index"].dtype == torch.int64


def test_padding_rows_have_no_label_and_no_index(dataset):
    batch = dataset.__getitems__([3, -1])
    assert batch["label"].tolist() == batch["index"].tolist() == [3, -1]
    assert batch["image"].shape == (2, 3, 5, 4)


def test_one_sample(dataset):
    sample = dataset[5]
    assert torch.equal(sample["image"], dataset.images[5])
    assert sample["label"].shape == sample["index"].shape == ()
    with pytest.raises(IndexError):
        dataset[40]


def test_labels_default_to_none(dataset):
    assert ImageTensors(dataset.images).__getitems__([1, 2])["label"].tolist() == [-1, -1]


def test_batches_of_transposed_storage_are_contiguous(dataset):
    turned = ImageTensors(dataset.images.transpose(2, 3))
    batch = turned.__getitems__([1, 2])["image"]
    assert batch.is_contiguous()
    assert torch.equal(batch, dataset.images[1:3].transpose(2, 3))


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (torch.zeros(4, 1, 2, 2), None, TypeError),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), None, ValueError),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), None, ValueError),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ValueError),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), TypeError),
    ],
)
def test_wrong_tensors_are_named(images, labels, error):
    with pytest.raises(error, match=r"images must|labels must"):
        ImageTensors(images, labels)


def test_collate_passes_batches_and_stacks_samples(dataset):
    batch = dataset.__getitems__([1, 2])
    assert collate(batch) is batch
    stacked = collate([dataset[1], dataset[2]])
    assert torch.equal(stacked["image"], batch["image"])
    assert stacked["index"].tolist() == [1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_starts_nothing_before_its_first_batch(dataset, workers):
    place = [0]
    sampler = ShardedSampler(dataset, 10, position=lambda: (place[0], 0))
    loader = Loader(dataset, batch_size=10, sampler=sampler, collate_fn=collate, num_workers=workers)
    iterator = iter(loader)
    place[0] = 5
    expected = list(ShardedSampler(dataset, 10, position=lambda: (5, 0)))
    assert torch.cat([batch["index"] for batch in iterator]).tolist() == expected
