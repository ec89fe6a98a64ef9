"""Crops: cut from the whole image while it is decoded, as the sample's key draws them."""

import pytest
import torch
from image_folders import truncate
from photos import SPEC, expected_crops, photo, pixels, write_photos
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from lit_ssl import ImageSpec
from lit_ssl.datamodules import ImageFiles, ShardedSampler
from lit_ssl.datamodules.dataset import collate
from lit_ssl.datamodules.decoding import Crop, CropPlan, decode_opened
from lit_ssl.datamodules.formats import find_images
from lit_ssl.random import sample_key
from lit_ssl.views import MAEViews, MultiCropViews, SimCLRViews, SLIPViews
from lit_ssl.views.groups import groups_of

SEED = 5


def files(root, views=None, channels=3, size=16, **kwargs):
    paths = find_images(root)
    whole = ImageFiles(root, paths, torch.arange(len(paths)), size=size, channels=channels, **kwargs)
    return whole.cropped(groups_of(views or SimCLRViews(), SPEC), SEED)


def crops_of(dataset, epoch, i, mode="RGB"):
    """What must come out, by name of the entry: (V, C, h, w)."""
    key = sample_key(SEED, epoch, torch.tensor([i]))
    crops = expected_crops(pixels(dataset.path(i), mode), key, dataset.plan.groups)
    return {f"crops/{name}": rows for name, rows in crops.items()}


@pytest.mark.parametrize("views", [SimCLRViews(), MAEViews(), MultiCropViews(local_views=3), SLIPViews()])
def test_crops_are_those_that_torchvision_cuts_from_the_whole_image_at_the_drawn_boxes(tmp_path, views):
    dataset = files(write_photos(tmp_path), views)
    batch = dataset.__getitems__([(2, i) for i in (7, 0, 3, 0)])
    assert batch["index"].tolist() == batch["label"].tolist() == [7, 0, 3, 0]
    names = {f"crops/{group.name}" for group in views.groups(SPEC)}
    assert set(batch) == {"image", "label", "index"} | names
    for row, i in enumerate((7, 0, 3, 0)):
        for name, rows in crops_of(dataset, 2, i).items():
            assert torch.equal(batch[name][row], rows)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_crops_have_the_channels_asked_for(tmp_path, channels, mode):
    photo(0, (50, 40), channels=4).save(tmp_path / "0.png")
    photo(1, (50, 40), channels=1).save(tmp_path / "1.png")
    dataset = files(tmp_path, channels=channels)
    batch = dataset.__getitems__([(0, 1)])
    assert batch["crops/view"].shape == (1, 2, channels, 14, 14)
    assert torch.equal(batch["crops/view"][0], crops_of(dataset, 0, 1, mode)["crops/view"])
    assert dataset.__getitems__([(0, 0)])["crops/view"].shape == (1, 2, channels, 14, 14)


def test_the_square_beside_the_crops_is_what_it_is_without_them(tmp_path):
    cropped = files(write_photos(tmp_path))
    plain = ImageFiles(tmp_path, find_images(tmp_path), cropped.labels, size=16, channels=3)
    batch = cropped.__getitems__([(0, i) for i in range(12)])
    assert torch.equal(batch["image"], plain.__getitems__(list(range(12)))["image"])
    assert "crops/view" not in cropped.__getitems__([1, 2])  # of a sampler that knows no epoch


def test_without_the_square_there_are_crops_only(tmp_path):
    whole = files(write_photos(tmp_path), MultiCropViews(local_views=3))
    dataset = whole.cropped(whole.plan.groups, SEED, square=False)
    rows = [(2, i) for i in (7, 0, 3)] + [(2, -1)]
    dataset.substitute = whole.substitute = False
    batch, wanted = dataset.__getitems__(rows), whole.__getitems__(rows)
    assert wanted.pop("image").shape == (4, 3, 16, 16)
    assert batch.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in batch.items())
    assert dataset.__getitems__([1, 2])["image"].shape == (2, 3, 16, 16)  # of a sampler that knows no epoch


# The same whoever reads


def loader(dataset, batch_size, epoch=1, rank=0, ranks=1, workers=0):
    sampler = ShardedSampler(
        dataset, batch_size, num_replicas=ranks, rank=rank, seed=SEED, position=lambda: (epoch, 0), pairs=True
    )
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate)


def test_batches_workers_and_ranks_change_no_crop(tmp_path):
    dataset = files(write_photos(tmp_path))
    alone = list(loader(dataset, 6))
    for workers in (1, 2):
        for batch, other in zip(alone, loader(dataset, 6, workers=workers), strict=True):
            assert all(torch.equal(value, other[name]) for name, value in batch.items())
    shares = [list(loader(dataset, 3, rank=rank, ranks=2)) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        for name, value in batch.items():
            assert torch.equal(value, torch.cat([part[name] for part in parts]))
    later = next(iter(loader(dataset, 12, epoch=2)))
    crops = {i: rows for batch in alone for i, rows in zip(batch["index"].tolist(), batch["crops/view"], strict=True)}
    assert all(not torch.equal(crops[i], later["crops/view"][row]) for row, i in enumerate(later["index"].tolist()))


def test_pairs_of_a_sampler():
    def drawn(**kwargs):
        return list(ShardedSampler(range(10), 4, seed=1, **kwargs))

    assert drawn(pairs=True, position=lambda: (3, 1)) == [(3, i) for i in drawn(position=lambda: (3, 1))]
    held_out = drawn(pairs=True, shuffle=False, num_replicas=3, rank=2)
    assert held_out == [(-1, i) for i in drawn(shuffle=False, num_replicas=3, rank=2)]


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_stands_in_for_a_broken_file_is_cropped_by_its_own_key(tmp_path):
    write_photos(tmp_path)
    truncate(tmp_path / "04.jpg")
    (tmp_path / "05.jpg").write_bytes(b"not an image")
    dataset = files(tmp_path, max_corrupt=2)
    batch = dataset.__getitems__([(0, 4), (0, 2), (0, 5), (0, 6)])
    assert batch["index"].tolist() == [6, 2, 6, 6]
    wanted = crops_of(dataset, 0, 6)["crops/view"]
    assert all(torch.equal(batch["crops/view"][row], wanted) for row in (0, 2, 3))
    assert torch.equal(batch["crops/view"][1], crops_of(dataset, 0, 2)["crops/view"])
    held_out = files(tmp_path, max_corrupt=2, substitute=False).__getitems__([(-1, 4), (-1, 6), (-1, -1)])
    assert held_out["index"].tolist() == [-1, 6, -1]
    assert not held_out["crops/view"][[0, 2]].any()
    assert torch.equal(held_out["crops/view"][1], crops_of(dataset, -1, 6)["crops/view"])


# From the whole image


def test_boxes_are_distributed_as_those_of_torchvision_s_random_resized_crop():
    views, size, count = SimCLRViews(), (40, 90), 2000
    plan = CropPlan(views.groups(SPEC), SEED)
    crops = [crop for i, ways in plan.draw(0, dict.fromkeys(range(count), size)).items() for crop in ways[size]]
    assert len(crops) == 2 * count
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in crops]
    for mine, other in zip(zip(*(crop.box for crop in crops), strict=True), zip(*theirs, strict=True), strict=True):
        mine, other = torch.tensor(mine), torch.tensor(other)
        values = torch.arange(max(size) + 1)
        shares = [(x[None] <= values[:, None]).double().mean(1) for x in (mine, other)]
        assert (shares[0] - shares[1]).abs().max() < 0.045  # Kolmogorov-Smirnov, 0.1 % of 4000 against 4000
    assert abs(sum(crop.flip for crop in crops) / len(crops) - 0.5) < 0.04


def test_crops_see_the_long_sides_and_all_pixels_of_small_crops(tmp_path):
    pixel = torch.randint(0, 2, (1, 64, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) * 255
    fine = pixel.expand(3, -1, -1).clone()
    fine[:, :, :48], fine[:, :, -48:] = (
        torch.tensor([255, 0, 0])[:, None, None],
        torch.tensor([0, 0, 255])[:, None, None],
    )
    Image.fromarray(fine.permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    views = SimCLRViews(scale=(0.02, 0.02))
    dataset = files(tmp_path, views)
    batches = [dataset.__getitems__([(epoch, 0)]) for epoch in range(30)]
    square = batches[0]["image"][0].float()
    assert (square[0] - square[2]).abs().max() < 10  # neither end
    crops = torch.cat([batch["crops/view"][0] for batch in batches]).float()
    assert (crops[:, 0] - crops[:, 2]).amax((1, 2)).gt(250).any()
    assert (crops[:, 2] - crops[:, 0]).amax((1, 2)).gt(250).any()
    gray = crops[(crops[:, 0] == crops[:, 2]).all((1, 2))]
    assert len(gray) > 3
    assert gray.std() > 1.5 * square.std()  # a crop of 14 pixels for 14: no noise is averaged away


# Upright


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_boxes_are_drawn_on_the_upright_image(tmp_path, orientation, kind):
    ways = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    ways[8] = Image.Transpose.ROTATE_270
    upright = photo(3, (64, 48))
    turned = upright.transpose(ways[orientation]) if orientation in ways else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / f"0.{kind}", exif=exif, quality=100, subsampling=0)
    dataset = files(tmp_path)
    crops = dataset.__getitems__([(1, 0)])["crops/view"][0]
    assert torch.equal(crops, crops_of(dataset, 1, 0)["crops/view"])
    upright.save(tmp_path / "0.bmp")
    difference = crops.int() - crops_of(files(tmp_path), 1, 0)["crops/view"].int()  # of the bitmap, which sorts first
    assert difference.abs().max() <= (8 if kind == "jpg" else 0)


# Draft-size decoding


@pytest.mark.parametrize("box", [(0, 0, 900, 1199), (17, 33, 500, 700), (401, 711, 113, 113), (5, 5, 60, 90)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_small_only_where_every_crop_keeps_the_pixels_asked_for(tmp_path, box, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(1, (1199, 900))
    (image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image).save(tmp_path / "x.jpg", exif=exif)
    crop = Crop(box, False, (56, 56))
    with Image.open(tmp_path / "x.jpg") as opened:
        _, (found,) = decode_opened(opened, 16, 3, {(900, 1199): [crop], (1199, 900): []})
        shrunk = round(1199 / max(opened.size))
    assert shrunk == {900: 8, 500: 8, 113: 2, 60: 1}[box[2]]
    assert min(box[2:]) / shrunk >= 56
    small, whole = (
        torch.from_numpy(x) for x in (found, crop.of(pixels(tmp_path / "x.jpg").permute(1, 2, 0).numpy(), 1))
    )
    assert (small.int() - whole.int()).abs().float().mean() < 1.5
    assert small.float().std() > 0.97 * whole.float().std()


def test_the_square_keeps_twice_its_pixels_whatever_the_crops(tmp_path):
    photo(1, (640, 480)).save(tmp_path / "x.jpg")
    for size, shrunk in ((256, 1), (120, 2), (60, 4)):
        with Image.open(tmp_path / "x.jpg") as opened:
            crop = Crop((0, 0, 480, 640), False, (8, 8))
            decode_opened(opened, size, 3, {(480, 640): [crop]})
            assert opened.size == (640 // shrunk, 480 // shrunk)


def test_groups_are_only_those_of_views_that_recipes_say():
    class Own(SimCLRViews):
        def __call__(self, image, key, spec, dtype):
            return [1 - view for view in super().__call__(image, key, spec, dtype)]

    assert groups_of(Own(), SPEC) == groups_of(lambda *_: [], SPEC) == groups_of(None, SPEC) == ()
    both, local = groups_of(MultiCropViews(local_views=4), ImageSpec(224))
    assert (both.name, both.size, len(both.recipes)) == ("global", (224, 224), 2)
    assert (local.name, local.size, len(local.recipes)) == ("local", (96, 96), 4)
