"""ImageText from tables: captions, labels, held-out rows, in Lightning, and arguments."""

import pytest
import torch
from captioned_images import SMALL, loaded, names, picture, spoil, whole
from note import Note

from lit_ssl.datamodules import ImageText
from lit_ssl.random import integers, sample_key

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


# In Lightning


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
