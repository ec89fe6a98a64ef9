"""ImageText: tables and shards in Lightning, held-out choices, drawn captions, and damage as ImageFolder has it."""

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lit_ssl.datamodules import CorruptImageError, ImageText
from lit_ssl.random import integers, sample_key

SMALL = {"image_size": 14, "load_size": 16, "num_workers": 0, "batch_size": 4}


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 18), (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures; that of row i has the gray value 10 i, two captions, one of three kinds, and a split."""
    rows = ["image,caption,other,kind,split"]
    for i in range(20):
        picture(tmp_path / f"pictures/{i:02}.png", 10 * i)
        rows.append(
            f"pictures/{i:02}.png,caption {i},other {i},{(30, 4, 200)[i % 3]},{'held' if i % 5 == 0 else 'train'}"
        )
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def spoil(folder, row, text):
    lines = (folder / "captions.csv").read_text().splitlines()
    lines[row + 1] = text
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def loaded(root, **kwargs):
    data = ImageText(root, **{**SMALL, **kwargs})
    data.setup("fit")
    return data


def names(dataset):
    return [dataset.path(i).name for i in range(len(dataset))]


def whole(dataset):
    return dataset.__getitems__(list(range(len(dataset))))


# Tables


def test_images_come_with_their_captions(folder):
    data = loaded(folder, caption_columns=("caption", "other"))
    assert (len(data.train_set), len(data.val_set)) == (18, 2)
    for dataset in (data.train_set, data.val_set):
        batch = whole(dataset)
        assert batch["image"].shape[1:] == (3, 16, 16)
        numbers = (batch["image"][:, 0, 8, 8] // 10).tolist()
        assert batch["text"] == [f"caption {i}" for i in numbers]
        assert batch["captions"] == [(f"caption {i}", f"other {i}") for i in numbers]
        assert batch["label"].unique().tolist() == [-1]
    assert data.class_names is data.num_classes is data.labelled_set is None


def test_labels_are_numbered_as_numbers(folder):
    data = loaded(folder, label_column="kind")
    assert (data.class_names, data.num_classes) == (["4", "30", "200"], 3)
    assert data.labelled_set is data.train_set
    batch = whole(data.train_set)
    assert batch["label"].tolist() == [(1, 0, 2)[int(name[:2]) % 3] for name in names(data.train_set)]
    spoil(folder, 0, "pictures/00.png,c,o,,train")
    data = loaded(folder, label_column="kind", val_fraction=0)
    assert data.train_set[0]["label"] == -1
    assert loaded(folder, label_column="other").class_names[:2] == ["o", "other 1"]


def test_a_column_says_which_rows_are_held_out(folder):
    data = loaded(folder, split_column="split", val_split="held")
    assert names(data.val_set) == ["00.png", "05.png", "10.png", "15.png"]
    assert len(data.train_set) == 16
    turned = loaded(folder, split_column="split", train_split="held", val_split="train")
    assert names(turned.train_set) == names(data.val_set)
    renamed = (folder / "captions.csv").read_text().replace(",held", ",valid")
    (folder / "captions.csv").write_text(renamed)
    assert names(loaded(folder, split_column="split").val_set) == names(data.val_set)


def test_rows_of_a_third_split_are_left_out_and_a_fraction_is_held_out_where_no_row_is(folder):
    data = loaded(folder, split_column="split", val_fraction=0.25)
    everything = names(data.train_set) + names(data.val_set)
    assert len(data.val_set) == 4
    assert sorted(everything) == [f"{i:02}.png" for i in range(20) if i % 5]


def test_a_split_that_no_row_names_lists_those_there_are(folder):
    with pytest.raises(ValueError, match="train_split='training' is in no row of column 'split', only 'held', 'train'"):
        loaded(folder, split_column="split", train_split="training")
    with pytest.raises(ValueError, match="val_split='dev' is in no row"):
        loaded(folder, split_column="split", val_split="dev")


def test_the_held_out_share_is_fixed_and_hardly_changes_when_rows_are_added(folder):
    held = set(names(loaded(folder, val_fraction=0.3).val_set))
    assert len(held) == 6
    assert set(names(loaded(folder, val_fraction=0.3, seed=5).val_set)) == held
    picture(folder / "pictures/new.png", 0)
    lines = (folder / "captions.csv").read_text().splitlines()
    lines.insert(1, "pictures/new.png,new,new,4,train")
    (folder / "captions.csv").write_text("\n".join(lines))
    assert len(held - set(names(loaded(folder, val_fraction=0.3).val_set))) <= 1
    assert loaded(folder, val_fraction=0).val_set is None


def test_rows_of_one_image_are_never_in_both_sets(folder):
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "captions.csv").write_text("\n".join([*lines, *(row.replace("caption", "more") for row in lines[1:])]))
    data = loaded(folder, val_fraction=0.5)
    assert set(names(data.train_set)).isdisjoint(names(data.val_set))
    assert len(data.train_set) + len(data.val_set) == 20
    assert all(len(captions) == 2 for captions in whole(data.train_set)["captions"])


def test_a_parquet_table(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [line.split(",") for line in (folder / "captions.csv").read_text().splitlines()]
    pq.write_table(pa.table(dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))), folder / "c.parquet")
    (folder / "pictures/03.png").write_bytes(b"broken")
    data = loaded(folder, table="c.parquet", split_column="split", val_split="held", max_corrupt=1)
    csv = loaded(folder, split_column="split", val_split="held", max_corrupt=1)
    with pytest.warns(UserWarning, match=r"c\.parquet row 4: .*03\.png cannot be decoded"):
        batch = whole(data.train_set)
    with pytest.warns(UserWarning, match=r"captions\.csv line 5: .*03\.png cannot be decoded"):
        other = whole(csv.train_set)
    assert batch["text"] == other["text"]
    assert torch.equal(batch["image"], other["image"])


# Damage


def test_the_first_bad_row_is_an_error_that_names_its_line(folder):
    spoil(folder, 3, "pictures/03.png,,,4,train")
    with pytest.raises(CorruptImageError) as caught:
        loaded(folder)
    assert str(caught.value) == (
        "captions.csv line 5: the caption of pictures/03.png is empty; no broken row is allowed by max_corrupt=0. "
        "Repair or remove it, or allow more with --data.max_corrupt 10"
    )


def test_all_bad_rows_are_counted_before_anything_runs(folder):
    for row in (3, 4, 7, 8, 9):
        spoil(folder, row, "pictures/03.png,,,4,train")
    with pytest.raises(
        CorruptImageError, match=r"line 5: .*line 6: .*line 9: .*; and 2 more; the 5 broken rows found exc"
    ):
        loaded(folder, max_corrupt=4)
    with pytest.warns(UserWarning, match="skipped: captions.csv line") as caught:
        data = loaded(folder, max_corrupt=5, val_fraction=0)
    assert [str(warning.message).rpartition("; ")[2] for warning in caught] == [
        f"{n} of at most 5" for n in range(1, 6)
    ]
    assert len(data.train_set) == 15


@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_rows_and_broken_images_share_one_allowance(folder):
    spoil(folder, 3, "pictures/03.png,,,4,train")
    (folder / "pictures/07.png").unlink()
    data = loaded(folder, max_corrupt=1, val_fraction=0)
    with pytest.raises(
        CorruptImageError, match=r"captions\.csv line 9: .*07\.png cannot .*the 2 broken files found exceed"
    ):
        whole(data.train_set)
    data = loaded(folder, max_corrupt=2, val_fraction=0)
    with pytest.warns(UserWarning, match=r"line 9: .*07\.png cannot be decoded \(FileNotFoundError.*2 of at most 2"):
        batch = whole(data.train_set)
    assert [path.name for path in data.train_set.corrupt] == ["07.png"]
    assert batch["text"][6] == batch["text"][7] == "caption 8"  # the image that stands in brings its own caption
    assert torch.equal(batch["image"][6], batch["image"][7])
    assert batch["index"].tolist()[5:8] == [5, 7, 7]


@pytest.mark.filterwarnings("ignore:skipped")
def test_held_out_broken_images_are_padding_rows_without_text(folder):
    (folder / "pictures/05.png").write_bytes(b"broken")
    data = loaded(folder, split_column="split", val_split="held", max_corrupt=1)
    batch = whole(data.val_set)
    assert batch["index"].tolist() == [0, -1, 2, 3]
    assert batch["text"] == ["caption 0", "", "caption 10", "caption 15"]
    assert data.val_set.__getitems__([2, -1])["captions"] == [("caption 10",), ("",)]


def test_what_holds_nothing_is_told(folder):
    (folder / "captions.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"captions\.csv holds no image to train on"):
        loaded(folder)
    (folder / "captions.csv").write_text("image,caption,kind\npictures/00.png,a,\npictures/01.png,b,\n")
    with pytest.raises(ValueError, match="label_column='kind' is empty throughout"):
        loaded(folder, label_column="kind", val_fraction=0)


# Shards


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


# In Lightning


class Note(LightningModule):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_batches, self.val_batches = [], []

    def training_step(self, batch):
        self.train_batches.append(batch)
        return self.layer.weight.sum()

    def validation_step(self, batch):
        self.val_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:skipped")
def test_training_draws_a_caption_by_key_and_evaluation_takes_the_first(folder, make_trainer):
    (folder / "pictures/05.png").write_bytes(b"broken")
    columns = ("caption", "other")
    data = ImageText(
        folder, caption_columns=columns, split_column="split", val_split="held", max_corrupt=1, seed=4, **SMALL
    )
    module = Note()
    make_trainer(max_epochs=3, num_sanity_val_steps=0).fit(module, data)
    assert len(module.train_batches) == 12
    drawn = []
    for i, batch in enumerate(module.train_batches):
        assert "captions" not in batch
        assert torch.equal(batch["key"], sample_key(4, i // 4, batch["index"]))
        places = integers(batch["key"], "caption", 2).tolist()
        captions = [data.train_set.captions(row) for row in batch["index"].tolist()]
        assert batch["text"] == [ways[place] for ways, place in zip(captions, places, strict=True)]
        drawn += places
    assert {0, 1} == set(drawn)
    for batch in module.val_batches:  # the broken one is left out, its text as well
        assert batch["text"] == ["caption 0", "caption 10", "caption 15"]
        assert len(batch["image"]) == len(batch["key"]) == 3


def test_images_with_different_numbers_of_captions(folder, make_trainer):
    for row in range(0, 20, 2):
        spoil(folder, row, f"pictures/{row:02}.png,caption {row},,4,train")
    module = Note()
    data = ImageText(folder, caption_columns=("caption", "other"), val_fraction=0, **SMALL)
    make_trainer(max_epochs=4).fit(module, data)
    texts = {}
    for batch in module.train_batches:
        for i, text in zip(batch["index"].tolist(), batch["text"], strict=True):
            texts.setdefault(i, set()).add(text)
    assert all(texts[i] == {f"caption {i}"} for i in range(0, 20, 2))
    assert any(len(texts[i]) == 2 for i in range(1, 20, 2))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"table": ""}, "table must be a string that is not empty, got ''"),
        ({"image_column": 3}, "image_column must be a string"),
        ({"caption_columns": ()}, "caption_columns must be one or several strings"),
        ({"caption_columns": ("a", "")}, "caption_columns must be one or several strings"),
        ({"shards": [3]}, "shards must be one or several strings"),
        ({"shards": "a.tar", "table": "b.csv"}, "table must be None where shards are given, got 'b.csv'"),
        ({"shards": "a.tar", "split_column": "s"}, "split_column must be None where shards are given"),
        ({"val_shards": "a.tar"}, "val_shards must be None where no shards are given"),
        ({"split_column": "s", "val_split": "train"}, "val_split must differ from train_split, got 'train' for both"),
        ({"val_fraction": 1.0}, "val_fraction must be from 0 to below 1"),
        ({"max_corrupt": -1}, "max_corrupt must be"),
        ({"channels": 2}, "channels must be"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        ImageText(tmp_path, **arguments)


def test_one_caption_column_may_be_a_string(folder):
    assert loaded(folder, caption_columns="other").train_set[0]["text"].startswith("other")
