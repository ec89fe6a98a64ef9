import itertools
import os
import subprocess
import sys

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views import BYOLViews, MAEViews, MultiCropViews, SimCLRViews, augment, blur, colour, fused, geometry

kernels = pytest.importorskip("lit_ssl.views.kernels", exc_type=ImportError)

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


def test_constants_are_those_of_the_batched_path():
    for name in ("LUMA", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"):
        assert getattr(kernels, name) == getattr(colour, name)
    assert kernels.SIGMAS == blur.SIGMAS


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("factors", [(0.0, 0.0, 0.0, -0.3), (1.8, 1.5, 2.6, 0.2), (0.4, 2.1, 0.3, 0.5)])
def test_jitter_is_the_batchs_in_every_order(factors, channels):
    image, factors = pictures(1, channels, 21, 17), torch.tensor([factors], dtype=torch.float64)
    for order in map(torch.tensor, itertools.permutations(range(4))):
        want = colour.jitter(image.double() / 255, colour.stages(factors, order[None], channels))
        got = recipe(image[0], (21, 17), jitter=torch.tensor([True]), factors=factors, order=order[None])
        torch.testing.assert_close(got.double(), want[0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("blurred", [False, True])
def test_solarize_is_torchvisions(blurred):
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3, 8, 1)
    chosen = {"solarize": torch.tensor([True]), "blur": torch.tensor([blurred])}
    before = recipe(ramp, (8, 256), **(chosen | {"solarize": torch.tensor([False])}))
    torch.testing.assert_close(recipe(ramp, (8, 256), **chosen), F.solarize(before, 0.5), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    channels=st.sampled_from([1, 2, 3, 5]),
    source=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flip=st.booleans(),
)
def test_any_crop_is_the_batchs(data, channels, source, size, flip):
    image = pictures(1, channels, *source)
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


SIZES = [(224, 224), (96, 128), (37, 64), (5, 3), (1, 1), (1, 7), (7, 1), (2, 30), (30, 2), (3, 2100), (40, 2040)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_the_batchs_and_torchvisions(size, sigma):
    image = pictures(1, 3, *size)
    blurred = {"blur": torch.tensor([True]), "sigma": torch.tensor([sigma], dtype=torch.float64)}
    got = recipe(image[0], size, **blurred)
    want = blur.gaussian_blur(image.double() / 255, blurred["sigma"], 11)[0]
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)
    if min(size) > 11:  # torchvision has no shorter kernels near an edge
        torch.testing.assert_close(got, F.gaussian_blur(image[0].float() / 255, [23, 23], [sigma]), atol=2e-5, rtol=0)


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_crops_of_a_loader_are_only_coloured_and_blurred(count, channels, monkeypatch):
    image, crops = pictures(3, channels, 50, 50), pictures(3 * count, channels, 32, 24)
    key, size = sample_key(0, 0, torch.arange(3)), (32, 24)
    plain = augment.augment(image, key, [augment.Recipe(flip=1)] * count, size, torch.float32, crops=crops)
    assert torch.equal(torch.cat(plain), crops.float() * (1 / 255))
    recipes = [augment.Recipe(flip=1, jitter=1, colour=(0.4, 0.4, 0.4, 0.1), blur=1)] * count
    compiled = augment.augment(image, key, recipes, size, torch.float32, crops=crops)
    monkeypatch.setattr(augment, "available", lambda: False)
    batched = augment.augment(image, key, recipes, size, torch.float32, crops=crops)
    torch.testing.assert_close(compiled, batched, atol=5e-6, rtol=0)


def test_keys_and_crops_that_do_not_belong_to_the_images_are_told():
    image, key = pictures(4, 3, 20, 20), sample_key(0, 0, torch.arange(4))
    for wrong in (key[:2], key.repeat(2)):
        with pytest.raises(ValueError, match=f"each of 4 images, got {len(wrong)}"):
            augment.augment(image, wrong, [augment.Recipe()] * 2, (16, 16), torch.float32)
    for shape in ((8, 3, 16, 15), (4, 3, 16, 16), (8, 1, 16, 16)):
        crops = torch.zeros(shape, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"crops must be \(8, 3, 16, 16\)"):
            augment.augment(image, key, [augment.Recipe()] * 2, (16, 16), torch.float32, crops=crops)


def test_views_come_in_any_floating_dtype_and_of_no_images():
    image = pictures(2, 3, 96, 96)
    full = made(SimCLRViews(), image, 96)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for view, wanted in zip(made(SimCLRViews(), image, 96, dtype), full, strict=True):
            assert view.dtype == dtype
            torch.testing.assert_close(view.float(), wanted, atol=5e-3, rtol=0)
    assert made(SimCLRViews(), image[:0], 96)[0].shape == (0, 3, 96, 96)


@pytest.fixture
def fresh():
    """Asks anew whether numba is there, and so do the tests after this one."""
    fused._make.cache_clear()
    yield
    fused._make.cache_clear()


def test_without_numba_views_are_made_by_torch(fresh, monkeypatch):
    compiled = made(SimCLRViews(), pictures(2, 3, 40, 40), 32)
    fused._make.cache_clear()
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert not fused.available()
    torch.testing.assert_close(made(SimCLRViews(), pictures(2, 3, 40, 40), 32), compiled, atol=5e-6, rtol=0)


def test_a_numba_that_does_not_compile_is_not_used(fresh, monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    assert not fused.available()


def test_a_numba_that_fails_is_told(fresh, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernels, "make", full)
    with pytest.warns(UserWarning, match="numba is installed but fails.*No space left on device"):
        assert not fused.available()


@pytest.mark.slow
def test_no_index_is_ever_out_of_bounds(tmp_path):
    """The tests of this file once more, compiled with a check of every index."""
    names = "batched_path or any_crop or every_order or blur_is or loader or any_batch"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__, "-k", names]
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | checked, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert any(tmp_path.rglob("*.nbc"))


def test_without_a_place_to_keep_them_kernels_are_compiled_for_the_process(monkeypatch):
    def no_place(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(kernels, "njit", no_place)
    function, options = kernels._compiled(len)
    assert function is len
    assert options["nogil"]
