"""Decoding: any mode and orientation gives the same picture."""

import io

import numpy as np
import pytest
import torch
from photos import photo
from PIL import Image

from lit_ssl.datamodules import decode, decoding


def gradient(size=32):
    ramp = np.linspace(0, 255, size * size).reshape(size, size)
    return np.rint(ramp).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr", "PA", "F"])
def test_every_mode_gives_the_same_picture(tmp_path, mode, channels):
    gray = gradient()
    if mode == "1":
        gray = np.where(gray > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(gray.astype(np.int32) * 257)
    elif mode == "PA":
        image = image.convert("P")
        image.info["transparency"] = bytes([255] * 256)
    else:
        image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else image.convert(mode)
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "YCbCr", "I", "F") else "x.png")
    image.save(path)
    out = decode(path, 32, channels)
    assert (out.shape, out.dtype) == ((channels, 32, 32), torch.uint8)
    for channel in out[:3]:
        assert np.abs(channel.numpy().astype(int) - gray).max() <= 1
    if channels == 4:
        assert out[3].unique().tolist() == [255]


def test_transparent_pixels_are_white_or_kept(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    rgb = decode(tmp_path / "x.png", 8, 3)
    assert rgb[:, 0, 0].tolist() == [10, 20, 30]
    assert rgb[:, 7, 7].tolist() == [255, 255, 255]
    assert decode(tmp_path / "x.png", 8, 4)[3, :, 0].tolist() == [255] * 4 + [0] * 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(64, 64), (640, 640)])  # the larger is decoded at a fraction
def test_exif_orientation_is_applied(tmp_path, orientation, size):
    upright = Image.new("L", size)
    upright.paste(255, (0, 0, size[0], size[1] // 2))  # bright above
    turned = upright.rotate({1: 0, 3: 180, 6: 90, 8: 270}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "x.jpg", exif=exif, quality=95)
    out = decode(tmp_path / "x.jpg", 32, 1)[0].float()
    assert out[:12].mean() > 250
    assert out[20:].mean() < 5


def test_the_central_square_is_taken(tmp_path):
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 10, 3).unique().tolist() == [200]
    assert decode(tmp_path / "x.png", 30, 3).shape == (3, 30, 30)


def test_a_large_jpeg_is_close_to_its_full_decoding(tmp_path):
    ramp = np.linspace(0, 255, 1024)
    picture = (ramp[:, None] * 0.5 + ramp[None] * 0.5).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    full = Image.open(tmp_path / "x.jpg").resize((64, 64), Image.Resampling.BICUBIC)
    difference = decode(tmp_path / "x.jpg", 64, 1)[0].int() - torch.from_numpy(np.array(full)).int()
    assert difference.abs().max() <= 2


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_torchvision_decodes_a_jpeg_as_pillow_does(tmp_path, monkeypatch, subsampling):
    photo(0, (123, 90)).save(tmp_path / "x.jpg", quality=85, subsampling=subsampling, progressive=subsampling == 1)
    assert decoding._torchvision_decodes()
    found = decode(tmp_path / "x.jpg", 80, 3)
    monkeypatch.setattr(decoding, "_torchvision_decodes", lambda: False)
    assert torch.equal(decode(tmp_path / "x.jpg", 80, 3), found)


@pytest.mark.parametrize("by_torchvision", [False, True])
def test_a_jpeg_that_ends_too_soon_is_no_image(monkeypatch, by_torchvision):
    file = io.BytesIO()
    photo(0, (123, 90)).save(file, "JPEG")
    monkeypatch.setattr(decoding, "_torchvision_decodes", lambda: by_torchvision)
    with pytest.raises((OSError, RuntimeError), match="truncated"):
        decode(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]), 80, 3)


def test_a_torchvision_without_a_decoder_is_not_asked(monkeypatch):
    def without(*arguments, **options):
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    decoding._torchvision_decodes.cache_clear()
    monkeypatch.setattr(decoding, "decode_jpeg", without)
    assert not decoding._torchvision_decodes()
    decoding._torchvision_decodes.cache_clear()
