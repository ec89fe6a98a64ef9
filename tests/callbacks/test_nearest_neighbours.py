import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from torch import nn
from torch.utils.data import DataLoader

from lit_ssl import ImageSpec
from lit_ssl.callbacks import NearestNeighbours
from lit_ssl.callbacks.augmented_views import grid
from lit_ssl.callbacks.nearest_neighbours import nearest

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def pixels(path):
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 15), st.integers(0, 100))
def test_nearest_is_a_search_through_all_others(n, dim, k, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim + 1, generator=generator) * torch.rand(n, 1, generator=generator) * 10
    queries = torch.randperm(n, generator=generator)[: max(1, n // 2)]
    found = nearest(x, queries, k)
    assert found.shape == (len(queries), min(k, n - 1))
    for query, row in zip(queries.tolist(), found.tolist(), strict=True):
        cosine = [torch.nn.functional.cosine_similarity(x[query], x[i], dim=0).item() for i in range(n)]
        others = sorted((i for i in range(n) if i != query), key=lambda i: -cosine[i])
        assert query not in row
        assert len(set(row)) == len(row)
        assert [cosine[i] for i in row] == pytest.approx([cosine[i] for i in others[: len(row)]], abs=1e-5)


def test_an_image_is_not_its_own_neighbour_but_its_copy_is():
    x = torch.eye(4)[[0, 1, 2, 1, 3]]
    assert nearest(x, torch.tensor([1, 3]), 1).flatten().tolist() == [3, 1]


class Brightness(nn.Module):
    """An encoder whose embeddings turn with an image's brightness, so that the nearest in brightness is the nearest."""

    num_features = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        angle = x.mean((1, 2, 3)) * self.scale
        return torch.stack([angle.cos(), angle.sin()], 1)


class Spy(NearestNeighbours):
    def _draw(self, **sample):
        self.sample = sample
        return super()._draw(**sample)


def flat(n, side=16):
    """Gray images, image i of brightness 3 i."""
    return (torch.arange(n)[:, None, None, None] * 3).expand(n, 1, side, side).to(torch.uint8)


def shades(picture, queries, k):
    """The gray at the centre of each tile."""
    height, width = picture.shape[0] // queries, picture.shape[1] // (k + 1)
    return picture[height // 2 :: height, width // 2 :: width, 0]


def test_the_picture_shows_queries_and_what_is_nearest_to_them(method, make_trainer, tmp_path):
    module = method(backbone=Brightness(), backbone_options=None, spec=ImageSpec(16, 1), lr=1e-9, weight_decay=0.0)
    loader = DataLoader(flat(64), batch_size=16)
    make_trainer(callbacks=[NearestNeighbours(queries=5, k=2)]).fit(module, loader, loader)
    picture = pixels(tmp_path / "pictures" / "nearest-neighbours-step4.png")
    found = shades(picture, 5, 2).astype(int)
    assert len(set(found[:, 0])) == 5
    assert list(found[:, 0]) == sorted(found[:, 0])
    for query, *neighbours in found:
        gaps = sorted(abs(query - 3 * i) for i in range(64) if 3 * i != query)
        assert [abs(query - shade) for shade in neighbours] == gaps[:2]
    assert not any((picture == np.array(colour, np.uint8)).all(-1).any() for colour in (BLUE, ORANGE))  # no labels


def test_frames_tell_the_querys_class_from_others(method, stripes, make_trainer, tmp_path):
    spy = Spy(queries=6, k=3)
    make_trainer(callbacks=[spy]).fit(method(), datamodule=stripes())
    picture = pixels(tmp_path / "pictures" / "nearest-neighbours-step4.png")
    x, label = spy.sample["x"], spy.sample["label"]
    assert spy.sample["index"].tolist() == list(range(40))
    images = spy.sample["image"]
    height, width = picture.shape[0] // 6, picture.shape[1] // 4
    tiles = picture.reshape(6, height, 4, width, 3).swapaxes(1, 2)
    plain = grid([images / 255]).numpy().reshape(40, height, width, 3)
    inside = (slice(5, -5), slice(5, -5))

    def which(tile):
        (row,) = [i for i in range(40) if (plain[i][inside] == tile[inside]).all()]
        return row

    colours = set()
    for query, *neighbours in tiles:
        row = which(query)
        assert (query == plain[row]).all()  # without a frame
        assert [which(tile) for tile in neighbours] == nearest(x, torch.tensor([row]), 3)[0].tolist()
        for tile in neighbours:
            colour = BLUE if label[which(tile)] == label[row] else ORANGE
            assert (tile[2:5, 2:-2] == colour).all()
            assert (tile[2:-2, -5:-2] == colour).all()
            assert (tile[:2] == 255).all()
            colours.add(colour)
    assert colours == {BLUE, ORANGE}


def test_rows_without_a_label_have_no_frame(method, make_trainer, tmp_path, images):
    label = torch.arange(64) % 2
    label[::3] = -1
    loader = DataLoader(list(zip(images, label, strict=True)), batch_size=16)
    spy = Spy(queries=8, k=8)
    make_trainer(callbacks=[spy]).fit(method(spec=ImageSpec(16, 1)), loader, loader)
    framed = pixels(tmp_path / "pictures" / "nearest-neighbours-step4.png")
    corners = framed.reshape(8, framed.shape[0] // 8, 9, -1, 3)[:, 3, :, 3]  # a pixel inside the frame of each tile
    colourful = (corners != corners[..., :1]).any(-1)
    assert 0 < colourful.sum() < 64
    assert not colourful[:, 0].any()


def test_it_is_drawn_every_n_epochs_and_at_the_end_with_the_same_queries(method, stripes, make_trainer, tmp_path):
    make_trainer(max_epochs=3, callbacks=[NearestNeighbours(k=2, every_n_epochs=2)]).fit(method(), datamodule=stripes())
    first, last = (tmp_path / "pictures" / f"nearest-neighbours-step{n}.png" for n in (8, 12))
    assert sorted((tmp_path / "pictures").iterdir()) == [last, first]
    a, b = pixels(first), pixels(last)
    assert (a[:, : a.shape[1] // 3] == b[:, : a.shape[1] // 3]).all()


def test_large_images_are_kept_small_and_of_one_size(method, make_trainer):
    spy = Spy(queries=2, k=1, max_samples=6)
    batches = [torch.full((4, 1, 300, 200), 9, dtype=torch.uint8), torch.full((4, 1, 80, 400), 9, dtype=torch.uint8)]
    loader = DataLoader(batches, batch_size=1, collate_fn=lambda rows: rows[0])
    make_trainer(callbacks=[spy]).fit(method(spec=ImageSpec((192, 96), 1)), loader, loader)
    assert spy.sample["image"].shape == (6, 1, 96, 48)
    assert spy.sample["image"].dtype == torch.uint8
    assert (spy.sample["image"] == 9).all()


def test_nothing_is_drawn_of_embeddings_that_are_not_numbers(method, stripes, make_trainer, tmp_path):
    module = method(lr=1e-9)
    module.represent = lambda image: torch.full((len(image), 4), torch.nan)
    make_trainer(callbacks=[NearestNeighbours()]).fit(module, datamodule=stripes())
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"queries": 0}, "queries must be an integer of at least 1, got 0"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"max_samples": 1}, "max_samples must be an integer of at least 2, got 1"),
        ({"every_n_epochs": True}, "every_n_epochs must be an integer of at least 1, got True"),
    ],
)
def test_arguments_are_validated(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(**kwargs)


@pytest.mark.parametrize("backbone", ["mlp", "convnet"])
def test_weights_are_bit_identical_without_it(backbone, method, stripes, make_trainer):
    options = {"backbone": "convnet", "backbone_options": {"width": 4}} if backbone == "convnet" else {}
    weights = []
    for callbacks in ([], [NearestNeighbours(every_n_epochs=1)]):
        torch.manual_seed(3)
        module = method(**options)
        make_trainer(max_epochs=2, callbacks=callbacks).fit(module, datamodule=stripes())
        weights.append([*module.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
