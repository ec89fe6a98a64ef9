import pytest
import torch

from lit_ssl.random import sample_key
from lit_ssl.spec import ImageSpec
from lit_ssl.views import MAEViews, SimCLRViews, SLIPViews


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (40, 3, 20, 24), generator=generator).to(torch.uint8)
    return image, sample_key(0, 0, torch.arange(40))


def test_the_first_view_is_a_light_crop_and_the_others_are_simclrs(batch):
    image, key = batch
    image[:, :, :, 12:] = 0  # a flip would show
    image[:, :, :, :12] = 200
    first, second, third = SLIPViews()(image, key, ImageSpec((18, 20)), torch.float64)
    light = MAEViews(scale=(0.5, 1.0), flip=0.0)(image, key, ImageSpec((18, 20)), torch.float64)[0]
    left, right = first[..., :3].mean((1, 2, 3)), first[..., -3:].mean((1, 2, 3))
    assert (left >= right).all()
    assert first.amax((1, 2, 3)).max() == pytest.approx(200 / 255)  # no colour was touched
    torch.testing.assert_close(first, light)
    alike = SimCLRViews(strength=1.0, colour=(0.4, 0.4, 0.4, 0.1)).recipe(small=True)
    assert SLIPViews().recipe(small=True) == alike
    assert (second[..., :3].mean((1, 2, 3)) < second[..., -3:].mean((1, 2, 3))).any()  # these are flipped
    assert (second - third).abs().mean() > 0.02


def test_a_flip_of_the_first_view_can_be_asked_for(batch):
    image, key = batch
    kept, flipped = (
        SLIPViews(caption_scale=(1.0, 1.0), ratio=(1.2, 1.2), caption_flip=p)(
            image, key, ImageSpec((20, 24)), torch.float64
        )[0]
        for p in (0.0, 1.0)
    )
    torch.testing.assert_close(flipped, kept.flip(3))
    torch.testing.assert_close(kept, image.double() / 255)


def test_a_samples_views_do_not_depend_on_its_company(batch):
    image, key = batch
    whole = SLIPViews()(image, key, ImageSpec((18, 20)), torch.float64)
    half = SLIPViews()(image[7:20], key[7:20], ImageSpec((18, 20)), torch.float64)
    for a, b in zip(whole, half, strict=True):
        torch.testing.assert_close(a[7:20], b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"caption_scale": (0.0, 1.0)}, "caption_scale must be"),
        ({"caption_flip": 2.0}, "caption_flip must be a number from 0 to 1, got 2.0"),
        ({"flip": 2.0}, "flip must be a number from 0 to 1, got 2.0"),
    ],
)
def test_an_argument_out_of_bounds_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        SLIPViews(**arguments)
