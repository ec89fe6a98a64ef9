"""ImageText from tar shards: the same samples as from files, in any order, by any number of workers."""

import pytest
import torch
from captioned_images import loaded, whole


@pytest.fixture
def sharded(folder):
    """The same twenty in three shards, numbered from 0."""
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(folder / "s-%02d.tar"), maxcount=8, verbose=False) as sink:
        for i in range(20):
            image = (folder / f"pictures/{i:02}.png").read_bytes()
            sink.write({"__key__": f"{i:02}", "png": image, "txt": f"caption {i}", "cls": i % 3})
    return folder


def test_shards_are_the_same_samples_as_files(sharded):
    data = loaded(sharded, shards="s-{00..02}.tar", label_column="cls", val_fraction=0)
    files = loaded(sharded, val_fraction=0)
    batch, other = whole(data.train_set), whole(files.train_set)
    assert torch.equal(batch["image"], other["image"])
    assert batch["text"] == other["text"]
    assert batch["label"].tolist() == [i % 3 for i in range(20)]
    assert data.class_names == ["0", "1", "2"]


def test_shards_are_read_in_any_order_by_any_number_of_workers(sharded):
    runs = []
    for workers in (0, 2):
        data = loaded(sharded, shards=["s-00.tar", "s-{01..02}.tar"], num_workers=workers, seed=3, val_fraction=0.25)
        batches = list(data.train_dataloader())
        runs.append(batches)
        assert [len(data.train_set), len(data.val_set)] == [15, 5]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["captions"] == b["captions"]
    order = torch.cat([batch["index"] for batch in runs[0]]).tolist()
    assert len(set(order)) == 12
    assert order != sorted(order)


def test_held_out_shards(sharded):
    data = loaded(sharded, shards="s-{00..01}.tar", val_shards="s-02.tar")
    assert whole(data.train_set)["text"] == [f"caption {i}" for i in range(16)]
    assert whole(data.val_set)["text"] == [f"caption {i}" for i in range(16, 20)]


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_broken_image_in_a_shard_is_named(sharded):
    path = sharded / "s-01.tar"
    data = loaded(sharded, shards="s-{00..02}.tar", val_fraction=0, max_corrupt=1)
    _, offset, length = data.train_set._places[9].tolist()
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"s-01\.tar/09\.png cannot be decoded"):
        batch = whole(data.train_set)
    assert batch["index"].tolist()[8:11] == [8, 10, 10]
