"""CaptionedShapes: what is held out, what captions say, what pictures show, and that nothing else changes them."""

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule

from lit_ssl.datamodules import CaptionedShapes
from lit_ssl.datamodules.captioned_shapes import HELD_OUT
from lit_ssl.datamodules.grammar import COLOURS, COMBINATIONS, VARIANTS, Combination, class_names, class_templates
from lit_ssl.datamodules.shapes import PALETTE

ALL = [Combination.of(number) for number in range(COMBINATIONS)]


def loaded(**kwargs):
    data = CaptionedShapes(**{"train_size": 4000, **kwargs})
    data.setup()
    return data


@pytest.fixture(scope="module")
def data():
    return loaded()


# Captions


@settings(max_examples=300, deadline=None)
@given(st.integers(0, COMBINATIONS - 1), st.integers(0, VARIANTS - 1))
def test_a_caption_of_any_wording_tells_its_combination(number, variant):
    combination = Combination.of(number)
    assert combination.number == number
    assert Combination.parse(combination.caption(variant)) == combination


def test_canonical_captions_and_wordings_all_differ():
    assert len({combination.caption() for combination in ALL}) == COMBINATIONS
    assert len({ALL[1234].caption(variant) for variant in range(VARIANTS)}) == VARIANTS


def test_captions_read_as_english():
    two = Combination(shape=0, colour=0, size=0, position=0, quantity=1)
    assert two.caption() == "two small red circles at the top left"
    one = Combination(shape=4, colour=5, size=1, position=4, quantity=0)
    assert one.caption(2) == "there is one large blue cross in the centre"
    found = {two.caption(v) for v in range(VARIANTS)} | {one._replace(quantity=3).caption(v) for v in range(VARIANTS)}
    for caption in (
        "in the upper left corner, a pair of little red discs",
        "there are two small red discs at the top left",
        "there is a pair of small red discs at the top left",
        "a picture of a group of four big blue plus signs in the middle",
        "four big blue crosses in the middle",
    ):
        assert caption in found


def test_a_caption_that_leaves_something_open_is_named():
    with pytest.raises(ValueError, match="without a position"):
        Combination.parse("two small red circles")
    with pytest.raises(ValueError, match="without a colour"):
        Combination.parse("two small circles at the top, infrared")
    for wrong in (-1, COMBINATIONS):
        with pytest.raises(ValueError, match="number must be from 0 to 4607"):
            Combination.of(wrong)
    with pytest.raises(ValueError, match="variant must be from 0 to 63, got 64"):
        ALL[0].caption(64)


# Holding out


def test_no_held_out_combination_occurs_in_training(data):
    train = {data.train_set.combination(i) for i in range(len(data.train_set))}
    held_out = {data.val_set.combination(i) for i in range(len(data.val_set))}
    assert train.isdisjoint(held_out)
    assert len(held_out) == HELD_OUT == len(data.val_set) == 1152
    assert train | held_out == set(ALL)
    told = {Combination.parse(caption) for i in range(200) for caption in data.train_set[i]["captions"]}
    assert told <= train


def test_each_attribute_value_and_each_class_occurs_in_both(data):
    for dataset in (data.train_set, data.val_set):
        shown = [dataset.combination(i) for i in range(len(dataset))]
        assert [len({c[field] for c in shown}) for field in range(5)] == [8, 8, 2, 9, 4]
        assert sorted({c.label for c in shown}) == list(range(64))


def test_the_split_is_that_of_every_run(data):
    other = loaded(seed=5, data_seed=7, image_size=48)
    assert other.val_set.combinations == data.val_set.combinations
    assert other.train_set.combinations == data.train_set.combinations


def test_a_gallery_of_500_has_500_distinct_captions(data):
    assert len(set(data.val_set.__getitems__(list(range(500)))["text"])) == 500


# Samples


def test_a_batch(data):
    batch = data.train_set.__getitems__([3, 0, 3999, -1])
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 32, 32), torch.uint8)
    assert batch["index"].tolist() == [3, 0, 3999, -1]
    assert batch["label"].dtype == torch.int64
    for i, label, captions, text in zip([3, 0, 3999], batch["label"], batch["captions"], batch["text"], strict=False):
        combination = data.train_set.combination(i)
        assert len(captions) == 5
        assert text == captions[0] == combination.caption()
        assert {Combination.parse(caption) for caption in captions} == {combination}
        assert data.class_names[label] == f"{COLOURS[combination.colour]} {combination.caption().split()[3]}".rstrip(
            "s"
        )
    assert batch["label"][-1] == -1
    assert data.val_set[7]["captions"] == (data.val_set[7]["text"],)


def test_labels_and_names(data):
    assert data.num_classes == len(data.class_names) == len(set(data.class_names)) == 64
    assert data.class_names == class_names()
    assert data.class_names[ALL[0].label] == "red circle"
    batch = data.val_set.__getitems__(list(range(len(data.val_set))))
    assert torch.equal(batch["label"], data.val_set.labels)
    assert data.labelled_set is data.train_set
    assert len(set(data.class_templates)) == len(class_templates()) == 18
    seen = Combination.parse(data.class_templates[0].format("red circle"))
    assert seen == Combination(shape=0, colour=0, size=0, position=0, quantity=0)


def test_what_comes_after_a_lap_is_the_same_combination_in_another_picture(data):
    lap = len(data.train_set.combinations)
    first, second = data.train_set[10], data.train_set[10 + lap]
    assert first["text"] == second["text"]
    assert not torch.equal(first["image"], second["image"])


def test_more_held_out_pictures_than_combinations():
    data = loaded(val_size=HELD_OUT + 3)
    assert data.val_set[HELD_OUT + 2]["text"] == data.val_set[2]["text"]
    assert not torch.equal(data.val_set[HELD_OUT + 2]["image"], data.val_set[2]["image"])


def test_an_index_beyond_the_end_is_an_error(data):
    with pytest.raises(IndexError, match="index 4000 is out of range for 4000"):
        data.train_set[4000]


# A picture is a pure function of (data_seed, index)


def test_the_batch_does_not_change_a_picture(data):
    indices = list(range(0, 4000, 13))
    together = data.train_set.__getitems__(indices)
    backwards = data.train_set.__getitems__(indices[::-1])
    assert torch.equal(together["image"], backwards["image"].flip(0))
    assert together["captions"] == backwards["captions"][::-1]
    for place in range(0, len(indices), 17):
        assert torch.equal(data.train_set[indices[place]]["image"], together["image"][place])
    for rows in (3, 7, 64):
        assert torch.equal(data.train_set.__getitems__(indices[:rows])["image"], together["image"][:rows])


def test_workers_threads_and_processes_do_not_change_a_picture(data):
    expected = torch.cat([batch["image"] for batch in data.loader(data.val_set)])
    workers = loaded(num_workers=1, batch_size=100)
    assert torch.equal(torch.cat([batch["image"] for batch in workers.loader(workers.val_set)]), expected)
    code = (
        "import torch, hashlib; from lit_ssl.datamodules import CaptionedShapes; torch.set_num_threads(2)\n"
        "data = CaptionedShapes(); data.setup()\n"
        "image = data.val_set.__getitems__(list(range(len(data.val_set))))['image']\n"
        "print(hashlib.blake2b(image.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.blake2b(expected.numpy().tobytes()).hexdigest()


def test_torch_s_default_dtype_does_not_change_a_picture(data):
    expected = data.val_set[4]["image"]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(data.val_set[4]["image"], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_pictures_follow_the_data_seed_and_not_the_run_s():
    first, run, other = loaded(), loaded(seed=9), loaded(data_seed=1)
    rows = list(range(20))
    assert torch.equal(first.train_set.__getitems__(rows)["image"], run.train_set.__getitems__(rows)["image"])
    for a, b in zip(
        first.train_set.__getitems__(rows)["image"], other.train_set.__getitems__(rows)["image"], strict=True
    ):
        assert not torch.equal(a, b)


def test_statistics_are_those_of_the_pictures(data):
    x = data.train_set.__getitems__(list(range(4000)))["image"].double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(x.mean(1), torch.tensor(data.spec.mean, dtype=x.dtype), atol=0.003, rtol=0)
    torch.testing.assert_close(x.std(1), torch.tensor(data.spec.std, dtype=x.dtype), atol=0.003, rtol=0)


# A picture shows what its caption says


def inked(x):
    """How far the pixels of (..., 3, S, S) are from the gray of the background, light or dark: (..., S, S)."""
    chroma = x - x.mean(-3, keepdim=True)
    tint = chroma.flatten(-2).median(-1).values[..., None, None]
    return (chroma - tint).square().sum(-3).sqrt()


def read(image):
    """Colour, number, mean place (x, y) and share of pixels of an object, as seen in uint8 (3, S, S)."""
    x = image.float() / 255
    ink = inked(x)
    mask = ink > 0.5 * ink.flatten().topk(4).values.mean()
    number, seen = 0, torch.zeros_like(mask)
    while bool((mask & ~seen).any()):
        number += 1
        start = (mask & ~seen).nonzero()[0]
        part = torch.zeros_like(mask)
        part[start[0], start[1]] = True
        while True:  # grown until it stops
            grown = torch.nn.functional.max_pool2d(part[None].float(), 3, 1, 1)[0].bool() & mask
            if torch.equal(grown, part):
                break
            part = grown
        seen |= part
    strongest = ink.flatten().topk(4).indices
    colour = (PALETTE - x.flatten(1)[:, strongest].mean(1)).square().sum(1).argmin()
    places = mask.nonzero().float() / len(mask[0])
    return int(colour), number, places.mean(0).flip(0), int(mask.sum()) / number / mask.numel()


@pytest.mark.parametrize("side", [28, 32, 64])
def test_count_colour_and_position_can_be_read_off(side):
    data = loaded(image_size=side)
    rows = list(range(0, HELD_OUT, 8))
    centres = torch.tensor([(x, y) for y in (0.28, 0.5, 0.72) for x in (0.28, 0.5, 0.72)])
    for i, image in zip(rows, data.val_set.__getitems__(rows)["image"], strict=True):
        combination = data.val_set.combination(i)
        colour, number, place, _ = read(image)
        assert colour == combination.colour, combination.caption()
        assert number == combination.quantity + 1, combination.caption()
        assert (centres - place).square().sum(1).argmin() == combination.position, combination.caption()


def test_size_and_shape_can_be_read_off():
    """Large objects cover twice as much, and each shape looks like the others of its kind."""
    data = loaded(image_size=64)
    rows = [i for i in range(2000) if data.train_set.combination(i).quantity == 0]
    images = data.train_set.__getitems__(rows)["image"]
    area = {}
    for i, image in zip(rows, images, strict=True):
        combination = data.train_set.combination(i)
        area.setdefault((combination.shape, combination.size), []).append(read(image)[3])
    mean = {kind: sum(found) / len(found) for kind, found in area.items()}
    for shape in range(8):
        assert max(area[shape, 0]) < min(area[shape, 1])
        assert 1.9 < mean[shape, 1] / mean[shape, 0] < 2.7  # (3.3 / 2.2) squared is 2.25


def test_shapes_differ():
    """Nearest mean picture of large single objects, cut out around their middle, tells the eight shapes apart."""
    data = loaded(image_size=64)
    rows = [i for i in range(4000) if data.train_set.combination(i)[2::2] == (1, 0)]
    ink = inked(data.train_set.__getitems__(rows)["image"].float() / 255)
    cut, kinds = [], []
    for i, picture in zip(rows, ink, strict=True):
        combination = data.train_set.combination(i)
        y, x_ = (round(64 * (0.28, 0.5, 0.72)[place]) for place in divmod(combination.position, 3))
        window = picture[y - 12 : y + 12, x_ - 12 : x_ + 12]
        cut.append(window / window.norm())
        kinds.append(combination.shape)
    cut, kinds = torch.stack(cut).flatten(1), torch.tensor(kinds)
    even = torch.arange(len(kinds)) % 2 == 0
    means = torch.stack([cut[even & (kinds == shape)].mean(0) for shape in range(8)])
    found = torch.cdist(cut[~even], means).argmin(1)
    assert (found == kinds[~even]).float().mean() > 0.97


def test_a_picture_that_is_not_square_shows_the_square_in_its_middle():
    wide = loaded(image_size=(32, 48)).val_set[0]["image"]
    assert wide.shape == (3, 32, 48)
    square = loaded().val_set[0]["image"]
    colour, number, _, _ = read(wide[:, :, 8:40])
    assert (colour, number) == read(square)[:2]


# In Lightning


class Note(LightningModule):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_batches, self.val_batches = [], []

    def training_step(self, batch):
        assert len(batch["text"]) == len(batch["image"])
        assert "captions" not in batch
        self.train_batches.append(batch)
        return self.layer.weight.sum()

    def validation_step(self, batch):
        self.val_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def captions_of(batches):
    return {i: text for batch in batches for i, text in zip(batch["index"].tolist(), batch["text"], strict=True)}


def test_training_draws_a_caption_by_sample_and_epoch_and_evaluation_takes_the_first(make_trainer):
    def run(batch_size):
        module, data = Note(), CaptionedShapes(train_size=320, val_size=33, batch_size=batch_size, seed=3)
        make_trainer(max_epochs=2, num_sanity_val_steps=0).fit(module, data)
        return module, data

    module, data = run(32)
    first, second = captions_of(module.train_batches[:10]), captions_of(module.train_batches[10:])
    again = run(64)[0].train_batches
    assert [first, second] == [captions_of(again[:5]), captions_of(again[5:])]  # whatever the batch
    for epoch in (first, second):
        places = [data.train_set[i]["captions"].index(text) for i, text in epoch.items()]
        assert set(places) == set(range(5))
    assert 0.1 < sum(first[i] == second[i] for i in first) / 320 < 0.4  # a fifth, and what is said twice
    held_out = captions_of(module.val_batches[:2])
    assert held_out == {i: data.val_set.combination(i).caption() for i in range(33)}


# Arguments


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train_size", 0, "train_size must be an integer of at least 1, got 0"),
        ("val_size", 2.5, "val_size must be"),
        ("wordings", 0, "wordings must be"),
        ("wordings", 65, "wordings must be at most 64, got 65"),
        ("data_seed", -1, "data_seed must be"),
        ("data_seed", None, "data_seed must be"),
        ("data_seed", 2**32, "seed must be"),
        ("image_size", 16, "image_size must be at least 28, got 16"),
        ("image_size", (32, 24), "image_size must be at least 28"),
    ],
)
def test_arguments_out_of_range_are_named(name, value, words):
    with pytest.raises(ValueError, match=words):
        CaptionedShapes(**{name: value})
