import colorsys

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.views import colour

FACTORS = torch.tensor([0.0, 0.2, 0.7, 1.0, 1.3, 1.8, 0.5, 1.1], dtype=torch.float64)


def pictures(dtype, channels=3):
    """Smooth, noisy, gray, saturated and tied pixels (two channels alike, all alike, black, white)."""
    x = torch.rand(8, channels, 12, 10, generator=torch.manual_seed(0), dtype=torch.float64)
    x[1] = x[1, :1]
    x[2] = (x[2] * 3).floor() / 2
    x[3], x[4] = 0, 1
    x[5, :, :6] = x[5, :, :6].round()
    return x.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_an_operation_is_torchvisions(name, channels, dtype, tolerance):
    x = pictures(dtype, channels)
    got = getattr(colour, name)(x, FACTORS)
    for row, factor in enumerate(FACTORS.tolist()):
        want = getattr(F, f"adjust_{name}")(x[row], factor)
        torch.testing.assert_close(got[row], want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [-0.5, -0.37, -0.2, -1 / 6, 0.0, 0.01, 1 / 3, 0.41, 0.5])
def test_hue_is_torchvisions(shift, dtype):
    x = pictures(dtype)
    got = colour.hue(x, torch.full((8,), shift, dtype=torch.float64))
    torch.testing.assert_close(got, F.adjust_hue(x, shift), atol=1e-5, rtol=0)  # theirs is float32 inside
    assert 0 <= got.min() <= got.max() <= 1


def test_hue_is_the_turn_of_hsv():
    x = pictures(torch.float64)
    shift = torch.tensor([-0.5, -0.3, 0.2, 0.1, 0.5, 1 / 3, 0.0, -0.07], dtype=torch.float64)
    for image, turned, turn in zip(x, colour.hue(x, shift), shift.tolist(), strict=True):
        pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.flatten(1).T.tolist()]
        want = torch.tensor([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in pixels], dtype=torch.float64)
        torch.testing.assert_close(turned.flatten(1).T, want, atol=1e-12, rtol=0)


def test_grayscale_and_solarize_are_torchvisions():
    x = pictures(torch.float64)
    torch.testing.assert_close(colour.grayscale(x), F.rgb_to_grayscale(x, num_output_channels=3))
    torch.testing.assert_close(colour.solarize(x), F.solarize(x, 0.5))
    torch.testing.assert_close(colour.solarize(x, 0.3), F.solarize(x, 0.3))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_what_needs_rgb_leaves_other_images_alone(channels):
    x = pictures(torch.float32, channels)
    shift = torch.full((8,), 0.3)
    assert colour.hue(x, shift) is x
    assert colour.saturation(x, shift) is x
    assert colour.grayscale(x) is x
    brighter = colour.brightness(x, FACTORS)
    torch.testing.assert_close(brighter, (x * FACTORS.float()[:, None, None, None]).clamp(0, 1))
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    factor = FACTORS.float()[:, None, None, None]
    torch.testing.assert_close(colour.contrast(x, FACTORS), (mean + factor * (x - mean)).clamp(0, 1))


def jittered(x, factors, order):
    return colour.jitter(x.clone(), colour.stages(factors, order, x.shape[1]).to(x.dtype, x.device))


def in_order(x, factors, order):
    """torchvision's operations, one image and one at a time."""
    steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    rows = []
    for row, image in enumerate(x):
        for step in order[row].tolist():
            image = steps[step](image, factors[row, step].item())
        rows.append(image)
    return torch.stack(rows)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_jitter_is_torchvisions_operations_in_each_images_order(seed, rows, channels, height, width):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, channels, height, width, generator=generator, dtype=torch.float64)
    factors = torch.rand(rows, 4, generator=generator, dtype=torch.float64) * 2
    factors[:, 3] = factors[:, 3] / 2 - 0.5
    factors[0, 3] = 0
    order = torch.rand(rows, 4, generator=generator).argsort(dim=1)
    want = in_order(x, factors, order)  # float32 in torchvision's hue
    torch.testing.assert_close(jittered(x, factors, order), want, atol=5e-6, rtol=0)
    sorted_ = (order == colour.HUE).int().argmax(1).argsort()  # as augment() sorts its rows
    got = jittered(x[sorted_], factors[sorted_], order[sorted_])
    torch.testing.assert_close(got, want[sorted_], atol=5e-6, rtol=0)
    same = order[:1].expand(rows, 4)
    torch.testing.assert_close(jittered(x, factors, same), in_order(x, factors, same), atol=5e-6, rtol=0)


def test_jitter_of_any_channels_is_brightness_and_contrast():
    x = pictures(torch.float64, 5)
    factors = torch.stack([FACTORS, FACTORS.flip(0), FACTORS, FACTORS / 4], dim=1)
    order = torch.tensor([[3, 0, 2, 1]]).expand(8, 4)
    want = colour.contrast(colour.brightness(x, factors[:, 0]), factors[:, 1])
    torch.testing.assert_close(jittered(x, factors, order), want)
