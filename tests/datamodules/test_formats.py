"""Which files are images: regular ones, of listed formats, whatever their names say."""

import os
import subprocess
import sys
import warnings
from collections import Counter

import pytest
import torch
from PIL import Image

from lit_ssl.datamodules import ImageFiles, ImageFolder, ImageText, decode, formats
from lit_ssl.datamodules.formats import EXTENSIONS, find_images, left_out_line, open_image
from lit_ssl.printable import printable, printable_name

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def photos(root, count, ending="png", folder=""):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (20, 16), (i, 99, 255 - i)).save(root / folder / f"{i}.{ending}")
    return root


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_ending_is_read(tmp_path, ending):
    like = {".apng": "png", ".jfif": "jpeg", ".jpe": "jpeg", ".jpx": "jpeg2000", ".j2k": "jpeg2000", ".dib": "bmp"}
    like |= {".pbm": "ppm", ".pgm": "ppm", ".pnm": "ppm", ".jp2": "jpeg2000"}
    Image.new("RGB", (20, 16), (9, 99, 255)).save(tmp_path / f"a{ending}", format=like.get(ending))
    assert find_images(tmp_path) == [f"a{ending}"]
    assert decode(tmp_path / f"a{ending}", 16, 3).shape == (3, 16, 16)


def test_other_bytes_under_a_good_name_start_no_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    for name in ("a.png", "b.jpg", "c.tif"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(Image.UnidentifiedImageError):
            decode(tmp_path / name, 16, 3)
    assert not started


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    photos(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.png").symlink_to(tmp_path / "1.png")
    left_out = Counter()
    assert find_images(tmp_path, left_out) == ["0.png", "1.png", "link.png"]
    assert left_out == {"no regular file": 2}
    with pytest.raises(OSError, match="no regular file"):
        open_image(tmp_path / "pipe.png")


def test_links_in_circles_are_no_images(tmp_path):
    photos(tmp_path, 2)
    (tmp_path / "x.png").symlink_to("x.png")
    (tmp_path / "y").symlink_to("z")
    (tmp_path / "z").symlink_to("y")
    left_out = Counter()
    assert find_images(tmp_path, left_out) == ["0.png", "1.png"]
    assert left_out == {"no regular file": 3}


def test_the_files_of_one_folder_are_not_looked_at_one_by_one(tmp_path, monkeypatch):
    photos(tmp_path, 30)
    looked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **kwargs: looked.append(path) or stat(path, *args, **kwargs))
    data = ImageFolder(tmp_path, image_size=16, batch_size=2, num_workers=0)
    data.setup("fit")
    assert len(data.train_set) == 27
    assert not [path for path in looked if str(path).endswith(".png")]


def test_a_bomb_is_a_broken_file_by_name(tmp_path):
    photos(tmp_path, 3)
    (tmp_path / "bomb.pgm").write_bytes(b"P5 100000 10000 255\n" + bytes(9))  # 10^9 pixels
    data = ImageFolder(tmp_path, image_size=16, batch_size=1, num_workers=0, val_fraction=0, max_corrupt=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
        assert sum(len(batch["image"]) for batch in data.train_dataloader()) == 4  # another stands in its place
    assert any("bomb.pgm cannot be decoded (DecompressionBombError" in str(entry.message) for entry in caught)


def test_what_was_left_out_is_counted_by_ending():
    found = Counter({".txt": 12, ".heic": 3, "": 0})
    assert "12 .txt" in left_out_line(found)
    assert left_out_line(Counter()) == ""
    if "pillow_heif" not in sys.modules:
        assert "3 .heic (pip install 'lit-ssl[heic]')" in left_out_line(found)


def test_heic_without_its_decoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_heif", lambda: ())
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    files = ImageFiles(tmp_path, ["a.heic"], torch.zeros(1), size=8, channels=3)
    assert files.fault(0).endswith("; HEIC needs pip install 'lit-ssl[heic]')")


def test_heic_is_read_with_its_decoder(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    photos(tmp_path, 3, "heic")
    data = ImageFolder(tmp_path, image_size=16, batch_size=1, num_workers=0, val_fraction=0)
    data.setup("fit")
    assert sum(len(batch["image"]) for batch in data.train_dataloader()) == 3
    (tmp_path / "b.heic").write_bytes(EPS)
    with pytest.raises(Image.UnidentifiedImageError):
        decode(tmp_path / "b.heic", 16, 3)


def test_names_do_not_move_the_cursor():
    assert printable("a\x1b[2Jb\u202etxt.png") == "a\\x1b[2Jb\\u202etxt.png"
    assert printable("日本.png\n\tü") == "日本.png\n\tü"
    assert printable(os.fsdecode(b"\xff.png")).isascii()
    assert printable_name("a\nlit-ssl: all is well\t.png") == "a\\nlit-ssl: all is well\\t.png"


# Folders


def classes(root, **kwargs):
    data = ImageFolder(root, image_size=16, batch_size=2, num_workers=0, **kwargs)
    data.setup("fit")
    return data.class_names, len(data.train_set), 0 if data.val_set is None else len(data.val_set), data.describe()


@pytest.mark.parametrize("held", ["val", "Val", "eval", "TEST", "dev", "holdout"])
def test_splits_are_no_classes(tmp_path, held):
    for part, count in (("train", 6), (held, 3)):
        for kind in ("cat", "dog"):
            photos(tmp_path, count, folder=f"{part}/{kind}")
    assert classes(tmp_path)[:3] == (["cat", "dog"], 12, 6)


def test_all_in_train_has_the_classes_below_it(tmp_path):
    for kind in ("cat", "dog"):
        photos(tmp_path, 10, folder=f"train/{kind}")
    assert classes(tmp_path)[:3] == (["cat", "dog"], 18, 2)


def test_what_was_taken_is_said(tmp_path):
    for year in range(2015, 2023):
        photos(tmp_path, 4, folder=str(year))
    (tmp_path / "notes.txt").write_text("")
    said = classes(tmp_path)[3]
    assert said.startswith(
        "29 images to train on, 3 held out (val_fraction 0.1); left out: 1 .txt; 8 classes from sub-folders: 2015, 2016"
    )
    assert said.endswith(", … (--data.labels none if they are no classes)")
    assert "classes" not in classes(tmp_path, labels="none")[3]


def test_of_two_folders_that_differ_in_case_the_one_in_lower_case_is_the_split(tmp_path):
    for part, count in (("train", 4), ("Train", 7), ("val", 2)):
        photos(tmp_path, count, folder=part)
    assert classes(tmp_path)[1:3] == (4, 2)


def test_what_lies_beside_the_splits_is_told(tmp_path):
    for part in ("train", "val", "test", "other\nfolder"):
        photos(tmp_path, 2, folder=part)
    photos(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("")
    said = classes(tmp_path)[3]
    told = "not used, beside the folders of the two splits: 0.png, other\\nfolder, test"
    assert said == f"2 images to train on, 2 held out; {told}"


def test_what_a_held_out_folder_inside_leaves_out_counts_once(tmp_path):
    photos(tmp_path, 6)
    photos(tmp_path, 3, folder="held")
    (tmp_path / "held" / "notes.txt").write_text("")
    assert classes(tmp_path, val_root=tmp_path / "held")[3] == "6 images to train on, 3 held out; left out: 1 .txt"
    other = photos(tmp_path / "apart", 4).parent
    assert "1 .txt" in classes(tmp_path / "apart", val_root=other / "held")[3]


@pytest.mark.parametrize("url", ["s3://bucket/photos", "https://host/x", "s3:/bucket"])
def test_a_url_is_no_folder(url):
    for name in ("table", "shards", "val_shards"):
        shards = {"shards": "a.tar"} if name == "val_shards" else {}
        with pytest.raises(ValueError, match=f"{name} must be a path of this machine, got the URL '{url}'"):
            ImageText("photos", **{**shards, name: url})
    with pytest.raises(ValueError, match=f"root must be a path of this machine, got the URL '{url}'"):
        ImageFolder(url)


def test_the_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(ImageFolder("~/photos", val_root="~/held").val_root) == "/home/someone/held"
    assert ImageText("~/photos", table="~/captions.csv").table == "/home/someone/captions.csv"
