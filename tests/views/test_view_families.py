import pickle
from contextlib import nullcontext

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

import lit_ssl.views
from lit_ssl.random import sample_key
from lit_ssl.spec import ImageSpec
from lit_ssl.views import (
    BYOLViews,
    MAEViews,
    MoCoViews,
    MultiCropViews,
    SimCLRViews,
    SingleView,
    View,
    augment,
    clean,
)

FAMILIES = [SimCLRViews, MoCoViews, BYOLViews, MAEViews, MultiCropViews, SingleView]
EVERYTHING = [
    SimCLRViews(blur=0.5),
    MoCoViews(blur=0.5),
    BYOLViews(blur=(0.5, 0.5), solarize=(0.5, 0.5)),
    MAEViews(),
    MultiCropViews(local_views=3, blur=(0.5, 0.5, 0.5)),
    SingleView(flip=0.5),
]


def batch(rows=12, channels=3, height=20, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, channels, height, width), generator=generator).to(torch.uint8)
    return image, sample_key(seed, 0, torch.arange(rows))


@settings(max_examples=60, deadline=None)
@given(
    views=st.sampled_from(EVERYTHING),
    rows=st.integers(0, 7),
    channels=st.integers(1, 5),
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_any_images_make_views_in_range(views, rows, channels, source, target, dtype, seed):
    image, key = batch(rows, channels, *source, seed)
    before = image.clone()
    out = views(image, key, ImageSpec(target, channels), dtype)
    assert torch.equal(image, before)
    for number, view in enumerate(out):
        local = isinstance(views, MultiCropViews) and number >= 2
        size = tuple(max(1, round(s * 3 / 7)) for s in target) if local else target
        assert view.shape == (rows, channels, *size)
        assert view.dtype == dtype
        assert view.is_contiguous()
        assert ((view >= 0) & (view <= 1)).all()  # false for NaN as well


@pytest.mark.parametrize("views", EVERYTHING, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("size", [(20, 24), (88, 80)])
def test_a_samples_views_do_not_depend_on_its_company(views, size):
    image, key = batch(30)
    spec = ImageSpec(size)
    whole = views(image, key, spec, torch.float64)
    order = torch.randperm(30, generator=torch.manual_seed(1))
    shuffled = views(image[order], key[order], spec, torch.float64)
    halves = [views(image[part], key[part], spec, torch.float64) for part in (slice(0, 11), slice(11, 30))]
    for number, view in enumerate(whole):
        torch.testing.assert_close(shuffled[number], view[order], atol=1e-12, rtol=0)
        torch.testing.assert_close(torch.cat([half[number] for half in halves]), view, atol=1e-12, rtol=0)


@pytest.mark.parametrize("views", EVERYTHING, ids=lambda v: type(v).__name__)
def test_the_same_call_gives_the_same_bits(views):
    image, key = batch(30)
    torch.manual_seed(0)
    first = views(image, key, ImageSpec((20, 24)), torch.float32)
    torch.manual_seed(1)
    second = views(image, key, ImageSpec((20, 24)), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("views", EVERYTHING[:3] + EVERYTHING[4:5], ids=lambda v: type(v).__name__)
def test_views_of_one_image_differ_and_change_with_the_key(views):
    image, key = batch()
    out = views(image, key, ImageSpec((20, 24)), torch.float32)
    again = views(image, key + 1, ImageSpec((20, 24)), torch.float32)
    assert (out[0] - out[1]).abs().mean() > 0.02
    assert all((a - b).abs().mean() > 0.02 for a, b in zip(out, again, strict=True))


@pytest.mark.parametrize("views", EVERYTHING, ids=lambda v: type(v).__name__)
def test_narrow_dtypes_are_the_wide_result_rounded(views):
    image, key = batch()
    wide = views(image, key, ImageSpec((20, 24)), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = views(image, key, ImageSpec((20, 24)), torch.bfloat16)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(wide, narrow, strict=True))


def test_blocks_do_not_show(monkeypatch):
    image, key = batch(40)
    whole = SimCLRViews()(image, key, ImageSpec((20, 24)), torch.float64)
    monkeypatch.setattr(augment, "_BLOCK_BYTES", 1)
    small = SimCLRViews()(image, key, ImageSpec((20, 24)), torch.float64)
    for a, b in zip(whole, small, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("views", EVERYTHING, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("size", [(20, 24), (18, 18), (88, 80)])
def test_nothing_is_read_back_from_the_device(views, size, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device used here
    image, key = batch(30)
    there = views(image.to("meta"), key, ImageSpec(size), torch.bfloat16)  # a device whose values cannot be read
    here = views(image, key, ImageSpec(size), torch.bfloat16)
    assert [(v.device.type, v.shape, v.dtype) for v in there] == [("meta", v.shape, v.dtype) for v in here]


def by_torchvision(image, draws, row, size):
    """One row's view, by torchvision's functions in the papers' order."""
    x = F.resized_crop(image / 255, *draws.box[row].tolist(), list(size), antialias=True)
    x = F.horizontal_flip(x) if draws.flip[row] else x
    if draws.jitter[row]:
        steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
        for step in draws.order[row].tolist():
            x = steps[step](x, draws.factors[row, step].item())
    x = F.rgb_to_grayscale(x, 3) if draws.grayscale[row] else x
    x = F.gaussian_blur(x, [3, 3], [draws.sigma[row].item()] * 2) if draws.blur[row] else x
    return F.solarize(x, 0.5) if draws.solarize[row] else x


def test_a_whole_recipe_is_torchvisions():
    image, key = batch(40)
    views = BYOLViews(blur=(0.5, 0.5), solarize=(0.3, 0.3))
    draws = augment.draw(key, "view", views.recipes(small=True), (20, 24))
    got = torch.cat(views(image, key, ImageSpec((22, 18)), torch.float64))
    for row in range(80):
        want = by_torchvision(image[row % 40].double(), draws, row, (22, 18))
        close = (got[row] - want).abs() < 1e-6  # a pixel within rounding of the threshold may solarize in one only
        assert close.double().mean() > 0.999


def test_papers_defaults():
    full, small = SimCLRViews().recipe(small=False), SimCLRViews().recipe(small=True)
    assert (full.scale, full.jitter, full.grayscale, full.blur) == ((0.08, 1.0), 0.8, 0.2, 0.5)
    assert full.colour == pytest.approx((0.8, 0.8, 0.8, 0.2))
    assert small.colour == pytest.approx((0.4, 0.4, 0.4, 0.1))
    assert small.blur == 0
    assert SimCLRViews(strength=1.0, blur=0.5).recipe(small=True) == full
    moco = MoCoViews().recipe(small=True)
    assert (moco.scale, moco.colour) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1))
    first, second = BYOLViews().recipes(small=False)
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert MAEViews().recipe().scale == (0.2, 1.0)
    assert [r.scale for r in MultiCropViews().recipes(small=False)] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]


def test_multi_crop_makes_two_large_and_some_small_views():
    image, key = batch()
    out = MultiCropViews(local_views=4)(image, key, ImageSpec(28), torch.float32)
    assert [v.shape[2:] for v in out] == [(28, 28)] * 2 + [(12, 12)] * 4
    out = MultiCropViews(local_views=1, local_size=(8, 10))(image, key, ImageSpec(28), torch.float32)
    assert out[2].shape[2:] == (8, 10)
    assert len(MultiCropViews(local_views=0)(image, key, ImageSpec(28), torch.float32)) == 2


def test_the_clean_view_of_the_right_size_is_the_image():
    image, key = batch()
    spec = ImageSpec((20, 24))
    torch.testing.assert_close(clean(image, spec, torch.float64), image.double() / 255)
    assert torch.equal(SingleView()(image, key, spec, torch.float32)[0], clean(image, spec, torch.float32))
    flipped = SingleView(flip=1.0)(image, key, spec, torch.float32)[0]
    assert torch.equal(flipped, clean(image, spec, torch.float32).flip(3))


@pytest.mark.parametrize(
    ("size", "resized"), [((10, 10), (10, 12)), ((40, 40), (40, 48)), ((80, 96), (80, 96)), ((10, 18), (15, 18))]
)
def test_the_clean_view_is_resize_and_centre_crop(size, resized):
    image, _ = batch()
    want = F.center_crop(F.resize(image.double() / 255, list(resized), antialias=True), list(size))
    got = clean(image, ImageSpec(size), torch.float64)
    if (resized[0] - size[0]) % 2 == 0:
        torch.testing.assert_close(got, want, atol=1e-9, rtol=0)
    else:  # torchvision's crop starts at a whole pixel, ours in the very middle
        torch.testing.assert_close(got.mean(), want.mean(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_plain_values(family):
    views = family()
    assert isinstance(views, View)
    assert pickle.loads(pickle.dumps(views)) == views
    assert family.__name__ in lit_ssl.views.__all__
    with pytest.raises(AttributeError):
        views.flip = 1.0


def test_families_are_found_from_yaml(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--views", type=View)
    file = tmp_path / "views.yaml"
    file.write_text(
        "views:\n  class_path: lit_ssl.views.BYOLViews\n  init_args:\n    scale: [0.3, 1]\n    solarize: [0.1, 0.2]\n"
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
    views = instantiate(parser.parse_args([f"--config={file}"])).views
    assert views == BYOLViews(scale=(0.3, 1.0), solarize=(0.1, 0.2))


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        (SimCLRViews, {"flip": 1.5}, "flip must be a number from 0 to 1, got 1.5"),
        (SimCLRViews, {"blur": -0.1}, "blur must be a number from 0 to 1, got -0.1"),
        (SimCLRViews, {"strength": 3.0}, r"strength must be a number from 0 to 2.5, got 3.0"),
        (SimCLRViews, {"strength": -1}, "strength must be a number from 0 to 2.5, got -1"),
        (SimCLRViews, {"jitter": float("nan")}, "jitter must be a number from 0 to 1, got nan"),
        (SimCLRViews, {"jitter": True}, "jitter must be a number from 0 to 1, got True"),
        (SimCLRViews, {"scale": (0.5, 0.2)}, r"scale must be \(least, greatest\).*got \(0.5, 0.2\)"),
        (SimCLRViews, {"scale": 0.5}, "scale must be .*got 0.5"),
        (MAEViews, {"scale": (0.0, 1.0)}, "scale must be .*0 < least.*got"),
        (MAEViews, {"scale": (0.5, 1.1)}, r"scale must be .*<= 1, got"),
        (MAEViews, {"ratio": (0, 1)}, "ratio must be"),
        (MoCoViews, {"colour": (0.4, 0.4, 0.4)}, "colour must be 4 numbers"),
        (MoCoViews, {"colour": (0.4, 0.4, 0.4, 0.6)}, r"colour\[3\] must be a number from 0 to 0.5, got 0.6"),
        (BYOLViews, {"solarize": 0.2}, "solarize must be 2 numbers, got 0.2"),
        (BYOLViews, {"blur": (1.0, 2.0)}, r"blur\[1\] must be a number from 0 to 1, got 2.0"),
        (BYOLViews, {"sigma": (0.0, 2.0)}, "sigma must be"),
        (MultiCropViews, {"local_views": -1}, "local_views must be an integer of at least 0, got -1"),
        (MultiCropViews, {"local_size": 0}, "local_size must be one or two integers of at least 1, or None, got 0"),
        (MultiCropViews, {"local_size": (8, 0)}, "local_size must be"),
        (MultiCropViews, {"global_scale": (0.4, 2.0)}, "global_scale must be .*<= 1"),
        (MultiCropViews, {"local_scale": (0.4, 0.2)}, "local_scale must be"),
        (SingleView, {"flip": "often"}, "flip must be a number from 0 to 1, got 'often'"),
    ],
)
def test_an_argument_out_of_bounds_is_named(family, arguments, words):
    with pytest.raises(ValueError, match=words):
        family(**arguments)
