"""Photographs to crop from, and the views of them that a sample's key says, made one by one."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from lit_ssl import ImageSpec
from lit_ssl.random import sample_key
from lit_ssl.views.augment import draw

SPEC = ImageSpec(14)
SIZES = ((60, 40), (40, 60), (48, 48), (33, 71))


def photo(seed, size, channels=3):
    """Width and height; blobs at several scales, so that no two places look alike."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.nn.functional.interpolate(
            torch.rand(1, channels, n, n, generator=generator), size=size[::-1], mode="bicubic"
        )
        for n in (2, 5, 12)
    ]
    pixels = (255 * (sum(layers) / 3).clamp(0, 1)).to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def write_photos(root, count=12):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photo(i, SIZES[i % len(SIZES)]).save(root / f"{i:02}.jpg", quality=95)
    return root


def pixels(path, mode="RGB"):
    with Image.open(path) as opened:
        array = np.array(ImageOps.exif_transpose(opened).convert(mode))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def expected_crops(picture, key, groups):
    """By group: uint8 (V, C, h, w), with torchvision's crop, resize and flip of the whole picture."""
    crops = {}
    for group in groups:
        draws = draw(key, group.name, group.recipes, tuple(picture.shape[1:]))
        made = [functional.resized_crop(picture, *box, group.size, antialias=True) for box in draws.box.tolist()]
        made = [functional.horizontal_flip(x) if flip else x for x, flip in zip(made, draws.flip.tolist(), strict=True)]
        crops[group.name] = torch.stack(made)
    return crops


def expected_views(path, index, epoch, seed, views, spec=SPEC):
    """The views (C, h, w) of one file."""
    picture, key = pixels(path), sample_key(seed, epoch, torch.tensor([index]))
    crops = expected_crops(picture, key, views.groups(spec))
    return [view[0] for view in views(picture[None], key, spec, torch.float32, crops)]
