import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from towers import Towers, shapes

from lit_ssl import ImageSpec, SimCLR
from lit_ssl.callbacks import ImageTextRetrieval
from lit_ssl.evaluation import retrieval

NAMES = [f"retrieval/{way}_{what}" for way in ("i2t", "t2i") for what in ("r1", "r5", "median_rank")]


def direct(module, data, rows=None, groups=None):
    batch = data.val_set.__getitems__(list(range(len(data.val_set)) if rows is None else rows))
    scores = retrieval(module.represent_image(batch["image"]), module.represent_text(batch["text"]), groups=groups)
    return {
        "retrieval/i2t_r1": scores.i2t[1],
        "retrieval/i2t_r5": scores.i2t[5],
        "retrieval/i2t_median_rank": scores.i2t_median_rank,
        "retrieval/t2i_r1": scores.t2i[1],
        "retrieval/t2i_r5": scores.t2i[5],
        "retrieval/t2i_median_rank": scores.t2i_median_rank,
        "retrieval/chance_r1": scores.chance[1],
    }


def test_it_is_the_evaluations_retrieval_over_all_held_out_pairs(make_trainer):
    module, data = Towers(lr=1e-2), shapes()
    trainer = make_trainer(max_epochs=2, callbacks=[ImageTextRetrieval()])
    trainer.fit(module, datamodule=data)
    expected = direct(module, data)
    assert set(NAMES) < set(expected)
    assert expected["retrieval/chance_r1"] == pytest.approx(1 / 37)
    for run in (trainer.validate, trainer.test):
        (found,) = run(module, datamodule=data, verbose=False)
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_pictures_of_one_caption_are_hits_of_one_another(make_trainer):
    module, data = Towers(), shapes()
    trainer = make_trainer(max_epochs=1, callbacks=[ImageTextRetrieval()])
    data.setup()
    data.val_set.combinations = [data.val_set.combinations[i // 4] for i in range(40)]
    trainer.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("retrieval")}
    assert metrics == pytest.approx(direct(module, data, groups=torch.arange(37) // 4))
    assert metrics["retrieval/chance_r1"] == pytest.approx((9 * 4 * 4 + 1) / 37 / 37)


def test_the_gallery_is_capped_and_spread_over_the_batches(make_trainer):
    module, data = Towers(), shapes(batch_size=8)
    callback = ImageTextRetrieval(max_samples=10)
    trainer = make_trainer(max_epochs=1, callbacks=[callback])
    trainer.fit(module, datamodule=data)
    expected = direct(module, data, rows=[0, 1, 8, 9, 16, 17, 24, 25, 32, 33])
    assert {name: float(trainer.callback_metrics[name]) for name in expected} == pytest.approx(expected)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_it_acts_every_n_epochs_and_not_in_the_sanity_check(make_trainer):
    class Count(ImageTextRetrieval):
        acted = 0

        def on_validation_epoch_end(self, trainer, pl_module):
            self.acted += self._due
            super().on_validation_epoch_end(trainer, pl_module)

    callback = Count(every_n_epochs=2)
    make_trainer(max_epochs=5, callbacks=[callback]).fit(Towers(), datamodule=shapes())
    assert callback.acted == 2


def test_images_are_encoded_once_for_all_callbacks(make_trainer):
    from lit_ssl.callbacks import ZeroShot

    class Counting(Towers):
        rows = 0

        def represent_image(self, image):
            self.rows += len(image)
            return super().represent_image(image)

    module = Counting()
    callbacks = [ImageTextRetrieval(), ZeroShot()]
    make_trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=callbacks).fit(module, datamodule=shapes())
    assert module.rows == 37


# A plain loader


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=generator)
        return {"image": image, "text": f"picture {i}"}


def test_a_plain_loader_of_dicts(make_trainer):
    loader = DataLoader(Pairs(), batch_size=10)
    trainer = make_trainer(max_epochs=2, callbacks=[ImageTextRetrieval()])
    module = Towers(spec=ImageSpec(28))
    trainer.fit(module, loader, loader)
    assert {"val/loss", *NAMES} <= set(trainer.callback_metrics)
    batch = next(iter(DataLoader(Pairs(), batch_size=24)))
    expected = retrieval(module.represent_image(batch["image"]), module.represent_text(batch["text"])).i2t[5]
    assert float(trainer.callback_metrics["retrieval/i2t_r5"]) == pytest.approx(expected)


def test_text_of_another_length_is_an_error_that_says_so(make_trainer):
    def short(samples):
        return {"image": torch.stack([s["image"] for s in samples]), "text": [s["text"] for s in samples[1:]]}

    loader = DataLoader(Pairs(), batch_size=8, collate_fn=short)
    with pytest.raises(ValueError, match="text must be a list of 8 strings, one caption an image, got 7 of them"):
        make_trainer(max_epochs=1).fit(Towers(spec=ImageSpec(28)), loader)


# What it needs


def test_a_method_without_a_text_tower_is_refused(make_trainer, tiny):
    with pytest.raises(MisconfigurationException, match=r"ImageTextRetrieval needs .* represent_text\(\), got SimCLR"):
        make_trainer(callbacks=[ImageTextRetrieval()]).fit(SimCLR(**tiny), datamodule=shapes())


def test_without_captions_it_is_off(make_trainer):
    class Silent(Towers):
        def loss(self, batch):
            return {"loss": self.backbone(self.normalize(batch["views"][0])).square().mean()}

    images = torch.stack([Pairs()[i]["image"] for i in range(24)])
    trainer = make_trainer(max_epochs=1, callbacks=[ImageTextRetrieval()])
    trainer.fit(Silent(spec=ImageSpec(28)), DataLoader(images, batch_size=8), DataLoader(images, batch_size=8))
    assert "val/loss" in trainer.callback_metrics
    assert not set(NAMES) & set(trainer.callback_metrics)


def test_a_run_that_has_diverged_is_not_ended(make_trainer):
    class Diverge(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.letters.weight.fill_(torch.nan)

    trainer = make_trainer(max_epochs=2, callbacks=[Diverge(), ImageTextRetrieval()], check_val_every_n_epoch=2)
    module = Towers()
    with pytest.warns(UserWarning, match="no retrieval: some embeddings are nan"):
        trainer.fit(module, datamodule=shapes())
    assert trainer.global_step == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_samples": 1}, "max_samples must be an integer of at least 2, got 1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageTextRetrieval(**arguments)
