"""CaptionedShapes: what is held out, samples, in Lightning, and arguments."""

import pytest
import torch
from few_shapes import loaded
from note import Note

from lit_ssl.datamodules import CaptionedShapes
from lit_ssl.datamodules.captioned_shapes import HELD_OUT
from lit_ssl.datamodules.grammar import COLOURS, COMBINATIONS, Combination, class_names, class_templates

ALL = [Combination.of(number) for number in range(COMBINATIONS)]


@pytest.fixture(scope="module")
def data():
    return loaded()


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


# In Lightning


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
