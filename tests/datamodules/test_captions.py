"""Tables of captions: what is read, and by which number a bad row is named."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.datamodules.captions import Columns, Strings, read_table

PLAIN = Columns("image", ("caption",))


def table(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def held(records):
    return [(record.image, record.captions, record.place[0]) for record in records]


# CSV


def test_images_and_captions_in_the_order_of_the_file(tmp_path):
    path = table(tmp_path / "c.csv", "caption,id,image\na cat,1,x/1.png\n two dogs ,2,x/2.png\n")
    records, bad = read_table(path, PLAIN)
    assert held(records) == [("x/1.png", ("a cat",), 2), ("x/2.png", ("two dogs",), 3)]
    assert bad == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_quotes_and_a_mark_in_front(tmp_path, end):
    text = end.join(["\ufeffimage,caption", 'a.png,"one, ""two"""', "", 'b.png,"over', 'lines"', "c.png,naïve 🐈", ""])
    records, bad = read_table(table(tmp_path / "c.csv", text), PLAIN)
    assert [(r.image, r.captions[0].split(), r.place) for r in records] == [
        ("a.png", ["one,", '"two"'], (2,)),
        ("b.png", ["over", "lines"], (4,)),
        ("c.png", ["naïve", "🐈"], (6,)),
    ]
    assert bad == []


def test_tabs(tmp_path):
    records, bad = read_table(table(tmp_path / "c.tsv", "image\tcaption\na.png\tone, two\n"), PLAIN)
    assert held(records) == [("a.png", ("one, two",), 2)]
    assert bad == []


def test_several_columns_and_several_rows_of_an_image(tmp_path):
    text = "image,caption,alt\na.png,one,uno\nb.png,two,\na.png,another,one\n"
    records, bad = read_table(table(tmp_path / "c.csv", text), Columns("image", ("caption", "alt")))
    assert held(records) == [("a.png", ("one", "uno", "another"), 2), ("b.png", ("two",), 3)]
    assert bad == []


BAD = [
    (b"b.png,", "line 3: the caption of b.png is empty"),
    (b"b.png,  ", "line 3: the caption of b.png is empty"),
    (b",words", "line 3: no image (column 'image' is empty)"),
    (b"b.png", "line 3: 1 columns, the header has 2"),
    (b"b.png,one,two", "line 3: 3 columns, the header has 2"),
    (b"b.png,caf\xe9", "line 3: bytes that are no UTF-8"),
    (b"b\xff.png,words", "line 3: bytes that are no UTF-8"),
    (b'b.png,"a"b', "line 3: no CSV"),
    (b'b.png,"never closed', "line 3: no CSV"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_named_by_its_line_and_spoils_no_other(tmp_path, row, reason):
    path = table(tmp_path / "c.csv", b"image,caption\na.png,first\n" + row + b'\nc.png,third\nd.png,"fourth"\n')
    records, bad = read_table(path, PLAIN)
    assert held(records) == [("a.png", ("first",), 2), ("c.png", ("third",), 4), ("d.png", ("fourth",), 5)]
    assert len(bad) == 1
    assert bad[0].startswith(f"c.csv {reason}")


def test_an_image_in_two_splits_or_of_two_labels_is_named(tmp_path):
    text = "image,caption,split,kind\na,x,train,1\na,y,train,1\na,z,val,1\na,w,train,2\n"
    records, bad = read_table(table(tmp_path / "c.csv", text), Columns("image", ("caption",), "kind", "split"))
    assert held(records) == [("a", ("x", "y"), 2)]
    assert bad == [
        "c.csv line 4: a has another split than on line 2",
        "c.csv line 5: a has another label than on line 2",
    ]


def test_a_missing_column_lists_those_there_are_and_the_options(tmp_path):
    path = table(tmp_path / "c.csv", "file,caption\na,b\n")
    with pytest.raises(
        ValueError, match=r"c\.csv has no column 'image', it has 'file', 'caption'; .*--data.image_column"
    ):
        read_table(path, PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.csv", b"", r"line 1 must be a header.*the file is empty"),
        ("c.csv", "image,caption\n".encode("utf-16"), r"line 1 must be a header.*no UTF-8"),
        ("c.csv", b'"image,caption\n', r"line 1 must be a header.*no CSV"),
        ("c.txt", b"image,caption\n", r"table must end in \.csv, \.tsv, \.tab, \.parquet, \.pq, got 'c.txt'"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words):
        read_table(table(tmp_path / name, content), PLAIN)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table .*c\.csv; say with --data.root and --data.table"):
        read_table(tmp_path / "c.csv", PLAIN)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=8))
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "c.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((f"{i}{a}", b) for i, (a, b) in enumerate(rows))])
    records, bad = read_table(path, PLAIN)
    expected = [(f"{i}{a}".strip(), (b.strip(),)) for i, (a, b) in enumerate(rows) if b.strip()]
    assert [(record.image, record.captions) for record in records] == expected
    assert len(bad) == len(rows) - len(expected)


# Parquet


def parquet(path, **columns):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def as_string(values):
    """A column of type string with these bytes, whether they are UTF-8 or not."""
    pa = pytest.importorskip("pyarrow")
    column = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), column.buffers())


def test_a_parquet_file(tmp_path):
    path = parquet(
        tmp_path / "c.parquet",
        image=["a", "b", "c", "a", "e"],
        caption=["one", None, " ", "two", "five"],
        kind=[3, 3, 1, 3, None],
        split=["train", "train", "val", "train", "val"],
    )
    records, bad = read_table(path, Columns("image", ("caption",), "kind", "split"))
    assert held(records) == [("a", ("one", "two"), 1), ("e", ("five",), 5)]
    assert [(record.label, record.split) for record in records] == [("3", "train"), ("", "val")]
    assert bad == ["c.parquet row 2: the caption of b is empty", "c.parquet row 3: the caption of c is empty"]


def test_a_parquet_column_of_lists(tmp_path):
    path = parquet(tmp_path / "c.pq", image=["a", "b"], caption=[["one", "", "two"], []])
    records, bad = read_table(path, PLAIN)
    assert held(records) == [("a", ("one", "two"), 1)]
    assert bad == ["c.pq row 2: the caption of b is empty"]


@pytest.mark.parametrize("encoded", [False, True])
def test_bad_bytes_in_a_parquet_file_spoil_their_row(tmp_path, encoded):
    captions = as_string([b"one", b"caf\xe9", "drei 🐈".encode()])
    path = parquet(
        tmp_path / "c.parquet", image=["a", "b", "c"], caption=captions.dictionary_encode() if encoded else captions
    )
    records, bad = read_table(path, PLAIN)
    assert held(records) == [("a", ("one",), 1), ("c", ("drei 🐈",), 3)]
    assert bad == ["c.parquet row 2: bytes that are no UTF-8"]


def test_what_a_parquet_file_lacks_is_told(tmp_path):
    path = parquet(tmp_path / "c.parquet", image=[1.5], caption=["a"], lists=[["a"]])
    with pytest.raises(ValueError, match="no column 'title', it has 'image', 'caption', 'lists'"):
        read_table(path, Columns("caption", ("title",)))
    with pytest.raises(ValueError, match="column 'image' must hold strings or integers, got double"):
        read_table(path, PLAIN)
    with pytest.raises(ValueError, match="column 'lists' must hold strings or integers, got list"):
        read_table(path, Columns("lists", ("caption",)))
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_table(table(tmp_path / "d.parquet", b"image,caption\n"), PLAIN)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-ssl\[parquet\]'"):
        read_table(table(tmp_path / "c.parquet", b""), PLAIN)


# Strings


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_strings_come_back(values):
    strings = Strings(values)
    assert [strings[i] for i in range(len(strings))] == values
