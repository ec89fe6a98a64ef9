"""ImageText with bad rows and broken images: named, counted, skipped up to a limit."""

import pytest
import torch
from captioned_images import loaded, spoil, whole

from lit_ssl.datamodules import CorruptImageError


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


@pytest.mark.parametrize("name", ["pictures/03.png/x.png", "y" * 300 + ".png", "loop.png"])
def test_a_name_that_no_file_can_have_is_a_broken_row_and_no_failure_of_the_disk(folder, name):
    (folder / "loop.png").symlink_to("loop.png")
    spoil(folder, 5, f"{name},words,,5,train")
    data = loaded(folder, max_corrupt=1, val_fraction=0)
    with pytest.warns(UserWarning, match=r"captions\.csv line 7: .*cannot be decoded \(.*Error: "):
        batch = whole(data.train_set)
    assert len(batch["image"]) == len(data.train_set)
