import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from towers import Towers, shapes

from lit_ssl import ImageSpec, SimCLR
from lit_ssl.callbacks import ZeroShot
from lit_ssl.datamodules.shapes import PALETTE


def nearest_prompts(module, data, templates):
    """The class of each held-out picture, one class at a time."""
    classes = []
    for name in data.class_names:
        prompts = [template.replace("{}", name) for template in templates]
        classes.append(normalize(module.represent_text(prompts).mean(0), dim=0))
    image = data.val_set.__getitems__(list(range(len(data.val_set))))["image"]
    return (module.represent_image(image) @ torch.stack(classes).mT).argmax(1)


@pytest.mark.parametrize("templates", [None, ("a {}", "{} on the left", "two {}s")])
def test_it_is_the_nearest_mean_prompt(templates, make_trainer):
    module, data = _built(Towers()), shapes(val_size=100)
    data.setup()
    predicted = nearest_prompts(module, data, templates or data.class_templates)
    assert len(predicted.unique()) > 2
    even = torch.arange(100) % 2 == 0
    data.val_set._labels[:100] = torch.where(even, predicted, (predicted + 1) % 64)
    trainer = make_trainer(callbacks=[ZeroShot(templates)])
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    assert found["zero_shot/val_acc"] == pytest.approx(0.5)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert found["zero_shot/test_acc"] == pytest.approx(0.5)
    assert "zero_shot/val_acc" not in found


def _built(module):
    module.spec = ImageSpec(28)
    module.configure_model()
    return module


class Known(Towers):
    """Towers that see the colour of a picture and read it in a caption, unless they are told to mistake it."""

    names = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
    shift = 0

    def represent_text(self, text):
        place = torch.tensor([next(i for i, name in enumerate(self.names) if name in caption) for caption in text])
        return torch.eye(8)[(place + self.shift) % 8]

    def represent_image(self, image):
        x = image.float() / 255
        chroma = x - x.mean(1, keepdim=True)
        strongest = chroma.square().sum(1).flatten(1).argmax(1)
        pixel = x.flatten(2)[torch.arange(len(x)), :, strongest]
        return torch.eye(8)[torch.cdist(pixel, PALETTE).argmin(1)]


def test_what_both_towers_know_is_classified_right(make_trainer):
    """Colours alone are known: of the 8 shapes of a colour the first class wins, an eighth of the pictures."""
    module, data = Known(), shapes(val_size=1152)
    (found,) = make_trainer(callbacks=[ZeroShot()]).validate(_built(module), datamodule=data, verbose=False)
    circles = (data.val_set.labels % 8 == 0).float().mean()
    assert found["zero_shot/val_acc"] == pytest.approx(float(circles), abs=0.005)


def test_text_embeddings_follow_the_text_tower(make_trainer):
    module, data = _built(Known()), shapes(val_size=300)
    callback = ZeroShot()
    trainer = make_trainer(callbacks=[callback])
    (right,) = trainer.validate(module, datamodule=data, verbose=False)
    module.shift = 1
    (wrong,) = trainer.validate(module, datamodule=data, verbose=False)
    assert right["zero_shot/val_acc"] > 0.08
    assert wrong["zero_shot/val_acc"] == 0


def test_prompts_are_made_of_every_name_and_template_at_each_evaluation(make_trainer):
    class Reading(Towers):
        def represent_text(self, text):
            read.append(list(text))
            return super().represent_text(text)

    read = []
    data = shapes()
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[ZeroShot(("a {}", "the {}"))])
    trainer.fit(Reading(), datamodule=data)
    assert read == [[f"{article} {name}" for name in data.class_names for article in ("a", "the")]] * 2


def test_names_given_for_a_plain_loader(make_trainer):
    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            label = i % 3 if i < 9 else -1
            return {"image": torch.full((3, 28, 28), 80 * (i % 3), dtype=torch.uint8), "label": label, "text": "x"}

    loader = DataLoader(Labelled(), batch_size=5)
    trainer = make_trainer(max_epochs=1, callbacks=[ZeroShot(class_names=["dark", "gray", "light"])])
    trainer.fit(Towers(spec=ImageSpec(28)), loader, loader)
    ninths = float(trainer.callback_metrics["zero_shot/val_acc"]) * 9
    assert ninths == pytest.approx(round(ninths), abs=1e-4)  # rows without a label do not count
    trainer = make_trainer(max_epochs=1, callbacks=[ZeroShot()])
    trainer.fit(Towers(spec=ImageSpec(28)), loader, loader)
    assert "zero_shot/val_acc" not in trainer.callback_metrics


def test_it_acts_every_n_epochs_and_not_in_the_sanity_check(make_trainer):
    class Count(ZeroShot):
        acted = 0

        def on_validation_epoch_end(self, trainer, pl_module):
            self.acted += self._classes is not None
            super().on_validation_epoch_end(trainer, pl_module)

    callback = Count(every_n_epochs=2)
    make_trainer(max_epochs=5, callbacks=[callback]).fit(Towers(), datamodule=shapes())
    assert callback.acted == 2


def test_a_method_without_a_text_tower_is_refused(make_trainer, tiny):
    with pytest.raises(MisconfigurationException, match=r"ZeroShot needs .* represent_text\(\), got SimCLR"):
        make_trainer(callbacks=[ZeroShot()]).fit(SimCLR(**tiny), datamodule=shapes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"templates": "a {}"}, "templates must be a list of strings that are not empty, got 'a {}'"),
        ({"templates": []}, "templates must be a list of strings"),
        ({"templates": ["a photo"]}, "templates must hold {}, where the class name goes, got 'a photo'"),
        ({"class_names": ["cat", ""]}, "class_names must be a list of strings"),
        ({"every_n_epochs": 0}, "every_n_epochs must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        ZeroShot(**arguments)
