import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.networks.tokenizers import ByteTokenizer, FileTokenizer, build_tokenizer


def reference(caption, room):
    """Whole characters while they fit, one by one."""
    row = b""
    for character in caption:
        character = character.encode("utf-8", "replace")
        if len(row) + len(character) > room:
            break
        row += character
    return [1, *(byte + 3 for byte in row), 2]


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=5), st.integers(3, 20))
def test_bytes_between_beginning_and_end(captions, context_length):
    tokens = ByteTokenizer(context_length)(captions)
    wanted = [reference(caption, context_length - 2) for caption in captions]
    width = max(map(len, wanted), default=2)
    assert tokens["ids"].tolist() == [row + [0] * (width - len(row)) for row in wanted]
    assert tokens["mask"].tolist() == [[place < len(row) for place in range(width)] for row in wanted]
    assert (tokens["ids"].dtype, tokens["mask"].dtype) == (torch.int64, torch.bool)
    assert tokens["ids"].max() < ByteTokenizer.size if captions else tokens["ids"].shape == (0, 2)


def test_every_byte_has_a_token_of_its_own():
    every = "".join(map(chr, range(128))) + "éßЖ日😀"
    ids = ByteTokenizer()([every])["ids"][0].tolist()
    assert bytes(i - 3 for i in ids[1:-1]).decode() == every
    assert ByteTokenizer()(["\ud800"])["ids"].tolist() == ByteTokenizer()(["?"])["ids"].tolist()  # no character at all


def test_a_character_is_never_cut():
    ids = ByteTokenizer(6)(["ab😀"])["ids"][0].tolist()  # room for four bytes; the emoji needs four of its own
    assert ids == [1, ord("a") + 3, ord("b") + 3, 2]


@pytest.mark.parametrize("value", [2, 0, True, 1.5])
def test_a_context_that_holds_no_byte_is_refused(value):
    with pytest.raises(ValueError, match=f"context_length must be an integer of at least 3, got {value}"):
        ByteTokenizer(value)


@pytest.fixture
def file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[unk]": 0, "a": 1, "red": 2, "circle": 3, "[end]": 7}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[unk]"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rust.post_processor = tokenizers.processors.TemplateProcessing(single="$A [end]", special_tokens=[("[end]", 7)])
    rust.enable_padding(length=30)  # what the file says of padding does not count
    rust.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_file(file):
    tokenizer = build_tokenizer(str(file), 4)
    tokens = tokenizer(["a red circle", "a", "a red circle a red", ""])
    assert tokens["ids"].tolist() == [[1, 2, 3, 7], [1, 7, 0, 0], [1, 2, 3, 7], [7, 0, 0, 0]]
    assert tokens["mask"].sum(1).tolist() == [4, 2, 4, 1]
    assert tokenizer.size == 8
    assert tokenizer([])["ids"].shape[0] == 0


def test_a_tokenizer_is_made_of_its_own_content(file):
    tokenizer = build_tokenizer(str(file), 5)
    file.unlink()
    again = build_tokenizer(tokenizer.source, 5)
    assert again(["a red"])["ids"].tolist() == tokenizer(["a red"])["ids"].tolist() == [[1, 2, 7]]


def test_a_caption_without_tokens_still_has_one(file):
    rust = __import__("tokenizers").Tokenizer.from_file(str(file))
    rust.post_processor = __import__("tokenizers").processors.TemplateProcessing(single="$A", special_tokens=[])
    tokens = FileTokenizer(rust.to_str())(["", "a"])
    assert tokens["mask"].tolist() == [[True], [True]]


def test_what_is_no_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(FileNotFoundError, match=r"tokenizer must be 'bytes' or a tokenizer.json.*no file .*missing"):
        build_tokenizer(str(tmp_path / "missing.json"))
    (tmp_path / "wrong.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"tokenizer must be .*tokenizer.json, which this is not"):
        build_tokenizer(str(tmp_path / "wrong.json"))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"tokenizers, which is not installed: pip install 'lit-ssl\[text\]'"):
        build_tokenizer("tokenizer.json")
