import sys

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views import BYOLViews, MAEViews, MultiCropViews, SimCLRViews, augment, fused, geometry, kernels

KINDS = [
    SimCLRViews(),
    SimCLRViews(strength=0, blur=1),
    BYOLViews(),
    MAEViews(),
    MultiCropViews(local_views=2, solarize=(0.5, 0.5, 0.5)),
]


def pictures(count, channels, height, width):
    """Noise, in which some pixels are gray, black, white, or have two channels alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, channels, height, width, generator=generator)
    kind = torch.randint(0, 6, (count, 1, height, width), generator=generator)
    x = torch.where(kind == 0, x[:, :1], x)
    x = torch.where(kind == 1, x.round(), x)
    x = torch.where(kind == 2, (3 * x).floor() / 2, x)
    return (255 * x.clamp(max=1)).to(torch.uint8)


def made(views, image, size, dtype=torch.float32, index=None):
    index = torch.arange(len(image)) if index is None else index
    return views(image, sample_key(0, 3, index), ImageSpec(size, image.shape[1]), dtype)


def recipe(image, size, **draws):
    """What ``kernels.make`` makes of one image: by default the image resized."""
    rows = torch.zeros(1, dtype=torch.bool)
    parts = {
        "box": torch.tensor([[0, 0, *image.shape[1:]]]),
        "flip": rows,
        "jitter": rows,
        "factors": torch.ones(1, 4, dtype=torch.float64),
        "order": torch.arange(4)[None],
        "gray": rows,
        "blur": rows,
        "sigma": torch.ones(1, dtype=torch.float64),
        "solarize": rows,
    } | draws
    return fused.fused(image[None], list(parts.values()), 1, size, 11)[0][0]


@pytest.mark.parametrize("views", KINDS, ids=lambda views: type(views).__name__)
@pytest.mark.parametrize(("source", "size"), [((40, 30), (98, 70)), ((90, 120), (33, 32)), ((28, 28), (28, 28))])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_views_are_those_of_the_batched_path(views, source, size, channels, monkeypatch):
    image = pictures(8, channels, *source)
    compiled = made(views, image, size)
    monkeypatch.setattr(augment, "available", lambda: False)
    for one, other, exact in zip(
        compiled, made(views, image, size), made(views, image, size, torch.float64), strict=True
    ):
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert 0 <= one.min() <= one.max() <= 1
        torch.testing.assert_close(one.double(), exact, atol=5e-6, rtol=0)
        torch.testing.assert_close(one, other, atol=3e-4, rtol=0)  # what grid_sample's places in float32 cost


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    source=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flip=st.booleans(),
)
def test_any_crop_is_the_batchs(data, source, size, flip):
    image = pictures(1, 3, *source)
    (top, tall), (left, wide) = (
        (start, data.draw(st.integers(1, side - start)))
        for side in source
        for start in [data.draw(st.integers(0, side - 1))]
    )
    drawn = {"box": torch.tensor([[top, left, tall, wide]]), "flip": torch.tensor([flip])}
    want = geometry.resample(image, *geometry.axes(**drawn, source=source, size=size))
    torch.testing.assert_close(recipe(image[0], size, **drawn).double(), want[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.37, -0.25, -1 / 6, -0.01, 0.0, 1 / 12, 0.2, 1 / 3, 0.5])
def test_hue_is_torchvisions(turn):
    image = pictures(1, 3, 30, 40)[0]
    factors = torch.tensor([[1.0, 1.0, 1.0, turn]], dtype=torch.float64)
    got = recipe(image, (30, 40), jitter=torch.tensor([True]), factors=factors)
    torch.testing.assert_close(got, F.adjust_hue(image.float() / 255, turn), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(224, 224), (96, 128), (37, 64), (5, 3), (1, 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_torchvisions(size, sigma):
    image = pictures(1, 3, *size)[0]
    blurred = {"blur": torch.tensor([True]), "sigma": torch.tensor([sigma], dtype=torch.float64)}
    got = recipe(image, size, **blurred)
    if min(size) > 11:  # torchvision has no shorter kernels near an edge
        torch.testing.assert_close(got, F.gaussian_blur(image.float() / 255, [23, 23], [sigma]), atol=2e-5, rtol=0)
    white = recipe(torch.full_like(image, 255), size, **blurred)
    torch.testing.assert_close(white, torch.ones(3, *size))


def test_a_samples_views_are_the_same_bits_in_any_batch_and_on_any_number_of_threads():
    image, index = pictures(7, 3, 40, 50), torch.arange(7)
    threads, whole = torch.get_num_threads(), made(SimCLRViews(), image, 64)
    some = made(SimCLRViews(), image[[5, 2]], 64, index=index[[5, 2]])
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        again = made(SimCLRViews(), image, 64)
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(whole, some, again, strict=True):
        assert torch.equal(one[[5, 2]], two)
        assert torch.equal(one, three)


def test_images_need_not_be_contiguous():
    image = pictures(3, 3, 20, 24)
    for one, other in zip(
        made(SimCLRViews(), image.contiguous(memory_format=torch.channels_last), 32),
        made(SimCLRViews(), image, 32),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_crops_of_a_loader_are_only_coloured_and_blurred(monkeypatch):
    crops, key = pictures(6, 3, 32, 24), sample_key(0, 0, torch.arange(3))
    call = (pictures(3, 3, 50, 50), key, [augment.Recipe(flip=1, jitter=1, colour=(0.4, 0.4, 0.4, 0.1), blur=1)] * 2)
    compiled = augment.augment(*call, (32, 24), torch.float32, crops=crops)
    monkeypatch.setattr(augment, "available", lambda: False)
    batched = augment.augment(*call, (32, 24), torch.float32, crops=crops)
    torch.testing.assert_close(compiled, batched, atol=5e-6, rtol=0)
    plain = augment.augment(call[0], key, [augment.Recipe()] * 2, (32, 24), torch.float32, crops=crops)
    assert torch.equal(torch.cat(plain), crops.float() * (1 / 255))


def test_views_come_in_any_floating_dtype_and_of_no_images():
    image = pictures(2, 3, 96, 96)
    full = made(SimCLRViews(), image, 96)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for view, wanted in zip(made(SimCLRViews(), image, 96, dtype), full, strict=True):
            assert view.dtype == dtype
            torch.testing.assert_close(view.float(), wanted, atol=5e-3, rtol=0)
    assert made(SimCLRViews(), image[:0], 96)[0].shape == (0, 3, 96, 96)


def test_without_numba_views_are_made_by_torch(monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    fused._kernels.cache_clear()
    try:
        assert not fused.available()
        assert made(SimCLRViews(), pictures(2, 3, 40, 40), 32)[0].shape == (2, 3, 32, 32)
    finally:
        fused._kernels.cache_clear()


def test_a_numba_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.delattr("lit_ssl.views.kernels")
    monkeypatch.setitem(sys.modules, "lit_ssl.views.kernels", None)
    fused._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba cannot be used"):
            assert not fused.available()
    finally:
        fused._kernels.cache_clear()


def test_without_a_place_to_keep_them_kernels_are_compiled_for_the_process(monkeypatch):
    def no_place(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(kernels, "njit", no_place)
    function, options = kernels._compiled(len)
    assert function is len
    assert options["nogil"]
