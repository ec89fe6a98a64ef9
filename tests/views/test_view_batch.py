import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_ssl.random import integers, sample_key
from lit_ssl.spec import ImageSpec
from lit_ssl.views import SingleView, as_batch, with_keys, with_text, with_views
from lit_ssl.views.batch import with_image, without_image

IMAGE = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.manual_seed(0)).to(torch.uint8)
LABEL = torch.tensor([3, 1, -1, 0, 2, 2])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_forms_of_a_batch():
    none = torch.full((6,), -1)
    plain = {"image": IMAGE, "label": none, "index": none}
    assert same(as_batch(IMAGE), plain)
    assert same(as_batch([IMAGE]), plain)
    assert same(as_batch({"image": IMAGE, "index": None}), plain)
    assert same(as_batch((IMAGE, LABEL)), {**plain, "label": LABEL})
    assert same(as_batch((IMAGE, LABEL.int(), "anything")), {**plain, "label": LABEL})
    full = {"image": IMAGE, "label": LABEL, "index": torch.arange(6), "weight": torch.ones(6)}
    assert same(as_batch(full), full)
    for loader in (DataLoader(TensorDataset(IMAGE), 6), DataLoader(list(IMAGE), 6)):
        assert same(as_batch(next(iter(loader))), plain)


def test_the_given_dict_is_left_alone():
    raw = {"image": IMAGE}
    with_views(with_keys(as_batch(raw), 0, 0), SingleView(), ImageSpec(8), torch.float32)
    assert list(raw) == ["image"]


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (IMAGE / 255, TypeError, r"uint8.*float32 tensor of shape \(6, 3, 8, 8\); leave out ToTensor"),
        (IMAGE.long(), TypeError, "uint8.*int64 tensor"),
        (IMAGE[:, 0], ValueError, r"shape \(B, C, H, W\).*\(6, 8, 8\); give gray images a channel"),
        (IMAGE[0, 0], ValueError, r"\(8, 8\)"),
        ([[IMAGE, IMAGE], LABEL], TypeError, "uint8 tensor.*got a list"),
        ("images", TypeError, "a batch must be .*got a str"),
        ([], TypeError, "a batch must be .*got a list"),
        (None, TypeError, "a batch must be .*got a NoneType"),
        ({"x": IMAGE}, ValueError, r"needs the key 'image', got a dict with the keys \['x'\]"),
        ((IMAGE, LABEL[:4]), ValueError, r"label must be an integer tensor of shape \(6,\).*\(4,\)"),
        ((IMAGE, LABEL.float()), ValueError, "label must be an integer tensor.*float32"),
        ((IMAGE, ["a"] * 6), ValueError, "label must be an integer tensor.*got a list"),
        ((IMAGE, ["a"] * 6), ValueError, "captions go into a dict with the keys 'image' and 'text'"),
        ({"image": IMAGE, "index": LABEL[:, None]}, ValueError, "index must be an integer tensor"),
        ({"image": IMAGE, "text": ["a"] * 5}, ValueError, "text must be a list of 6 strings, .*got 5 of them"),
        ({"image": IMAGE, "text": ["a"] * 5 + [None]}, ValueError, "text must be a list of 6 strings, .*got a list"),
        ({"image": IMAGE, "text": "sixsix"}, ValueError, "text must be a list of 6 strings, .*got a str"),
        ({"image": IMAGE, "text": LABEL}, ValueError, "text must be a list of 6 strings, .*got a int64 tensor"),
    ],
)
def test_what_is_no_batch_is_named(raw, error, words):
    with pytest.raises(error, match=words):
        as_batch(raw)


def test_a_key_belongs_to_seed_epoch_and_index():
    index = torch.tensor([4, 0, 9, 2, 7, 5])
    keys = with_keys(as_batch({"image": IMAGE, "index": index}), 3, 1, (8, 9))["key"]
    assert torch.equal(keys, sample_key(3, 1, index))
    alone = with_keys(as_batch({"image": IMAGE[2:3], "index": index[2:3]}), 3, 1)["key"]
    assert torch.equal(alone, keys[2:3])
    for seed, epoch in ((4, 1), (3, 2), (3, -1)):
        other = with_keys(as_batch({"image": IMAGE, "index": index}), seed, epoch)["key"]
        assert not (other == keys).any()


def test_rows_without_an_index_are_keyed_by_salt_and_place():
    settings = [(0, 0, (5, 0)), (0, 0, (6, 0)), (0, 0, (5, 1)), (0, 1, (5, 0)), (1, 0, (5, 0)), (0, 0, None)]
    keys = [with_keys(as_batch(IMAGE), *setting)["key"] for setting in settings]
    assert all(key.dtype == torch.int64 and key.device.type == "cpu" for key in keys)
    assert torch.cat(keys).unique().numel() == 6 * len(settings)
    assert torch.equal(keys[0], with_keys(as_batch(IMAGE), 0, 0, (5, 0))["key"])
    mixed = with_keys(as_batch({"image": IMAGE, "index": torch.tensor([0, 1, 2, -1, -1, -1])}), 0, 0, (5, 0))["key"]
    assert torch.equal(mixed[3:], keys[0][3:])
    assert torch.equal(mixed[:3], sample_key(0, 0, torch.arange(3)))


def test_text_is_one_caption_a_row():
    words = tuple("abcdef")
    assert as_batch({"image": IMAGE, "text": words})["text"] == list(words)
    assert as_batch({"image": IMAGE[:0], "text": []})["text"] == []
    assert "text" not in as_batch(IMAGE)


def test_a_caption_is_drawn_by_key_or_the_first():
    ways = [tuple(f"{row}{place}" for place in range(1 + row % 3)) for row in range(6)]
    batch = with_keys(as_batch({"image": IMAGE, "index": torch.arange(6), "captions": ways}), 0, 1)
    first = with_text(batch, draw=False)
    assert first["text"] == ["00", "10", "20", "30", "40", "50"]
    assert "captions" not in first
    assert batch["captions"] == ways
    drawn = with_text(batch, draw=True)["text"]
    for row, text in enumerate(drawn):
        place = int(integers(batch["key"][row : row + 1], "caption", len(ways[row])))
        assert text == ways[row][place]
    every = [with_text(with_keys(batch, 0, epoch), draw=True)["text"][2] for epoch in range(30)]
    assert set(every) == {"20", "21", "22"}
    plain = as_batch({"image": IMAGE, "text": ["x"] * 6})
    assert with_text(plain, draw=True) is plain


def test_views_are_called_with_image_key_spec_and_dtype():
    calls = []

    def views(*arguments):
        calls.append(arguments)
        return ["a view"]

    batch, spec = with_keys(as_batch(IMAGE), 0, 0), ImageSpec(8)
    assert with_views(batch, views, spec, torch.float64)["views"] == ["a view"]
    assert calls == [(batch["image"], batch["key"], spec, torch.float64)]


def test_images_that_do_not_fit_the_spec_are_named():
    batch = with_keys(as_batch(IMAGE), 0, 0)
    with pytest.raises(ValueError, match=r"channels=1, but images have shape \(6, 3, 8, 8\): 3 channels$"):
        with_views(batch, SingleView(), ImageSpec(8, 1), torch.float32)
    last = with_keys(as_batch(IMAGE.permute(0, 2, 3, 1)), 0, 0)
    with pytest.raises(ValueError, match="move the channels to the front"):
        with_views(last, SingleView(), ImageSpec(8, 3), torch.float32)
    with pytest.raises(ValueError, match="no 'key'"):
        with_views(as_batch(IMAGE), SingleView(), ImageSpec(8), torch.float32)


def test_the_first_view_s_crops_stand_for_an_image_that_is_not_there():
    crops = torch.stack([IMAGE, IMAGE + 1]).transpose(0, 1)  # view by view in memory
    batch = {"label": LABEL, "crops/global": crops, "crops/local": crops[..., :4]}
    shown = with_image(batch)
    assert torch.equal(shown["image"], IMAGE)
    assert shown["image"].data_ptr() == crops.data_ptr()
    assert same(without_image(shown), batch)
    own = {"image": IMAGE, **batch}
    for whole in (own, {"image": IMAGE}, {"label": LABEL}):
        assert with_image(whole) is whole
    assert without_image(own) is own
