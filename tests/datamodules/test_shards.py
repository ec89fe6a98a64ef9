"""Tar shards: which samples they hold, where their images lie, and what damage costs."""

import io
import sys
import tarfile

import pytest

from lit_ssl.datamodules.captions import Columns
from lit_ssl.datamodules.shards import expand, read_shards

pytest.importorskip("webdataset")

TEXT = Columns(None, ("txt",))


def shard(path, *members, mode="w"):
    """A tar file of (name, bytes); a name that ends in / is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def content(root, names, record):
    number, offset, length = record.place
    return (root / names[number]).read_bytes()[offset : offset + length]


def test_samples_share_a_name_up_to_the_first_dot(tmp_path):
    shard(
        tmp_path / "s.tar",
        ("a/", b""),
        ("a/1.jpg", b"first image"),
        ("a/1.txt", b" a cat \n"),
        ("a/1.cls", b"7"),
        ("a/2.title.txt", b"a title"),
        ("a/2.TXT", "naïve".encode()),
        ("a/2.json", b"{}"),
        ("a/2.PNG", b"second image"),
        ("README", b"no sample: without a dot"),
        ("b/2.jpg", b"x" * 3000),
        ("b/2.txt", b"third"),
    )
    records, bad = read_shards(tmp_path, ["s.tar"], Columns(None, ("txt", "title.txt"), "cls"))
    assert bad == []
    assert [(r.image, r.captions, r.label) for r in records] == [
        ("s.tar/a/1.jpg", ("a cat",), "7"),
        ("s.tar/a/2.png", ("naïve", "a title"), ""),
        ("s.tar/b/2.jpg", ("third",), ""),
    ]
    assert [content(tmp_path, ["s.tar"], record) for record in records] == [
        b"first image",
        b"second image",
        b"x" * 3000,
    ]


def test_what_webdataset_writes_is_read(tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=4, verbose=False) as sink:
        for i in range(10):
            sink.write({"__key__": f"{i:04}", "jpg": bytes([i]) * 600, "txt": f"caption {i}", "cls": i % 3})
    names = expand(tmp_path, ["s-{000..002}.tar"])
    assert names == ["s-000.tar", "s-001.tar", "s-002.tar"]
    records, bad = read_shards(tmp_path, names, Columns(None, ("txt",), "cls"))
    assert bad == []
    assert [r.captions[0] for r in records] == [f"caption {i}" for i in range(10)]
    assert [r.label for r in records] == [str(i % 3) for i in range(10)]
    assert [content(tmp_path, names, record) for record in records] == [bytes([i]) * 600 for i in range(10)]


def test_the_extension_of_images_can_be_given(tmp_path):
    shard(tmp_path / "s.tar", ("1.jpg", b"a"), ("1.depth.png", b"b"), ("1.txt", b"x"), ("2.jpg", b"c"), ("2.txt", b"y"))
    records, bad = read_shards(tmp_path, ["s.tar"], Columns("depth.png", ("txt",)))
    assert [record.image for record in records] == ["s.tar/1.depth.png"]
    assert bad == ["s.tar/2: no image among .jpg, .txt"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ((("2.jpg", b"x"),), "s.tar/2: the caption is empty (.txt)"),
        ((("2.jpg", b"x"), ("2.txt", b" \n")), "s.tar/2: the caption is empty (.txt)"),
        ((("2.txt", b"words"), ("2.json", b"{}")), "s.tar/2: no image among .txt, .json"),
        ((("2.jpg", b"x"), ("2.txt", b"caf\xe9")), "s.tar/2: a caption or label of bytes that are no UTF-8"),
    ],
)
def test_a_bad_sample_is_named_and_spoils_no_other(tmp_path, members, reason):
    shard(tmp_path / "s.tar", ("1.jpg", b"x"), ("1.txt", b"one"), *members, ("3.jpg", b"x"), ("3.txt", b"three"))
    records, bad = read_shards(tmp_path, ["s.tar"], TEXT)
    assert [record.captions for record in records] == [("one",), ("three",)]
    assert bad == [reason]


# Damage


def three(path):
    return shard(
        path, *((f"{i}.{kind}", text) for i in range(3) for kind, text in (("jpg", b"x" * 700), ("txt", b"w")))
    )


@pytest.mark.parametrize("where", ["data", "header", "broken header"])
def test_a_shard_that_breaks_off_is_named_and_keeps_what_comes_before(tmp_path, where):
    path = three(tmp_path / "s.tar")
    whole = path.read_bytes()
    last = 2 * (512 + 1024 + 512 + 512)  # where the third sample begins
    cut = {"data": whole[: last + 600], "header": whole[: last + 100], "broken header": whole[:last] + b"?" * 2048}[
        where
    ]
    path.write_bytes(cut)
    records, bad = read_shards(tmp_path, ["s.tar"], TEXT)
    assert [record.image for record in records[:2]] == ["s.tar/0.jpg", "s.tar/1.jpg"]
    assert any(reason.startswith(f"{path} breaks off behind") for reason in bad)


def test_a_shard_without_an_end_mark_is_whole(tmp_path):
    path = three(tmp_path / "s.tar")
    path.write_bytes(path.read_bytes()[: 3 * (512 + 1024 + 512 + 512)])
    records, bad = read_shards(tmp_path, ["s.tar"], TEXT)
    assert len(records) == 3
    assert bad == []


@pytest.mark.parametrize("mode", ["w:gz", "no tar"])
def test_what_cannot_be_read_at_random_is_told(tmp_path, mode):
    path = tmp_path / "s.tar"
    if mode == "no tar":
        path.write_bytes(b"not an archive" * 100)
    else:
        shard(path, ("1.jpg", b"x"), mode=mode)
    with pytest.raises(ValueError, match=r"s\.tar is no uncompressed tar file .*: unpack it"):
        read_shards(tmp_path, ["s.tar"], TEXT)


# Patterns


def test_missing_shards_are_counted(tmp_path):
    three(tmp_path / "s-1.tar")
    with pytest.raises(FileNotFoundError, match=r"no shard .*s-0\.tar \(2 of 3 are missing\); say with --data.root"):
        expand(tmp_path, ["s-{0..2}.tar"])
    assert expand(tmp_path, ["s-{1..1}.tar", "s-1.tar"]) == ["s-1.tar", "s-1.tar"]


def test_without_webdataset_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-ssl\[webdataset\]'"):
        expand(tmp_path, ["s.tar"])
