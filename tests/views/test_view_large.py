import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views import MultiCropViews, SimCLRViews, augment, colour, geometry, large
from lit_ssl.views.blur import gaussian_blur


def picture(seed, channels, height, width, dtype=torch.float64):
    """Noise, in which some pixels are gray, black, white, or have two channels alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, channels, height, width, generator=generator, dtype=dtype)
    kind = torch.randint(0, 6, (height, width), generator=generator)
    x = torch.where(kind == 0, x[:, :1], x)
    x = torch.where(kind == 1, x.round(), x)
    return torch.where(kind == 2, (3 * x).floor() / 2, x)


@pytest.mark.parametrize("turn", [-0.5, -0.37, -0.25, -1 / 6, -1 / 12, -0.01, 0.01, 1 / 12, 0.2, 1 / 3, 0.41, 0.5])
def test_hue_is_the_batchs(turn):
    x = picture(0, 3, 30, 40)
    want = colour.hue(x, torch.tensor([turn], dtype=torch.float64))
    pixels = large.hue(x[0].flatten(1).clone(), turn)
    torch.testing.assert_close(pixels.view_as(x[0]), want[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(pixels.view_as(x[0]), F.adjust_hue(x[0], turn), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3, 4]), order=st.permutations(range(4)))
def test_jitter_is_the_batchs(seed, channels, order):
    generator = torch.Generator().manual_seed(seed)
    x = picture(seed, channels, 7, 9)
    factors = 2 * torch.rand(1, 4, generator=generator, dtype=torch.float64)
    factors[:, 3] = factors[:, 3] / 2 - 0.5
    want = colour.jitter(x.clone(), colour.stages(factors, torch.tensor([order]), channels))
    torch.testing.assert_close(large.jitter(x.clone(), factors[0].tolist(), order), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(224, 224), (96, 128), (37, 64), (5, 3)])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_the_batchs(size, sigma):
    x = picture(1, 3, *size)
    want = gaussian_blur(x, torch.tensor([sigma], dtype=torch.float64), size[0] // 20 + 1)
    got = large.blur(x, sigma, size[0] // 20 + 1)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    torch.testing.assert_close(large.blur(torch.ones_like(x), sigma, 11), torch.ones_like(x))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    target=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flip=st.booleans(),
)
def test_crop_is_the_batchs(data, size, target, flip):
    image = (255 * picture(2, 3, *size)).to(torch.uint8)
    (top, tall), (left, wide) = (
        (start, data.draw(st.integers(1, side - start)))
        for side in size
        for start in [data.draw(st.integers(0, side - 1))]
    )
    box = torch.tensor([[top, left, tall, wide]])
    down, across = geometry.axes(box, torch.tensor([flip]), size, target)
    want = geometry.resample(image, down, across)
    got = large.crop(image[0], box[0].tolist(), flip, target, torch.float64)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "views", [SimCLRViews(), MultiCropViews(local_views=2, solarize=(0.5, 0.5, 0.5)), SimCLRViews(strength=0, blur=1)]
)
def test_views_are_the_same_one_by_one_and_together(views, channels, monkeypatch):
    image = (255 * torch.cat([picture(n, channels, 40, 30) for n in range(6)])).to(torch.uint8)
    key, spec = sample_key(0, 3, torch.arange(6)), ImageSpec((98, 98), channels)
    made = []
    for alone, large_image in ((1, 1), (10**9, 1), (10**9, 10**9)):
        monkeypatch.setattr(augment, "_ALONE_BYTES", alone)
        monkeypatch.setattr(augment, "_LARGE_BYTES", large_image)
        made.append(views(image, key, spec, torch.float64))
    for one, cropped, together in zip(*made, strict=True):
        torch.testing.assert_close(one, together, atol=1e-6, rtol=0)
        torch.testing.assert_close(cropped, together, atol=1e-6, rtol=0)
        assert one.is_contiguous()
        assert 0 <= one.min() <= one.max() <= 1


def test_views_of_large_images_come_in_any_floating_dtype():
    image = (255 * picture(0, 3, 96, 96)).to(torch.uint8)
    key, spec = sample_key(0, 0, torch.arange(1)), ImageSpec(96)
    full = SimCLRViews()(image, key, spec, torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for view, wanted in zip(SimCLRViews()(image, key, spec, dtype), full, strict=True):
            assert view.dtype == dtype
            torch.testing.assert_close(view.float(), wanted, atol=5e-3, rtol=0)
    assert SimCLRViews()(image[:0], key[:0], spec, torch.float32)[0].shape == (0, 3, 96, 96)
