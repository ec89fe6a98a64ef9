import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lit_ssl.callbacks import OnlineKNN
from lit_ssl.callbacks.features import Part, encode, represent
from lit_ssl.evaluation import knn


def direct(module, data, **options):
    train, held = data.labelled_set, data.val_set
    x, y = module.represent(train.images), module.represent(held.images)
    return knn(x, train.labels, y, held.labels, **options)


@pytest.mark.parametrize("options", [{}, {"k": 3, "temperature": 0.5}])
@pytest.mark.parametrize("labels", ["train", "apart"])
def test_it_is_the_evaluations_knn_on_clean_images(options, labels, method, stripes, make_trainer):
    module, data = method(), stripes(labels)
    trainer = make_trainer(max_epochs=2, callbacks=[OnlineKNN(**options)])
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["knn/val_acc"] == pytest.approx(direct(module, data, **options))
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    assert found["knn/val_acc"] == pytest.approx(direct(module, data, **options))


def test_the_bank_follows_the_encoder(method, stripes, make_trainer):
    """Embeddings that move between validations: a stale bank would be at odds with them."""

    class Turn(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            torch.manual_seed(trainer.current_epoch)
            with torch.no_grad():
                for parameter in pl_module.backbone.parameters():
                    parameter.normal_()

    module, data = method(), stripes()
    trainer = make_trainer(max_epochs=3, callbacks=[Turn(), OnlineKNN()])
    trainer.fit(module, datamodule=data)
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    assert found["knn/val_acc"] == pytest.approx(direct(module, data))


def test_the_bank_is_capped(method, stripes, make_trainer, monkeypatch):
    from lit_ssl.callbacks import neighbours

    sizes = []

    def spy(bank, *args, **kwargs):
        sizes.append(len(bank))
        return original(bank, *args, **kwargs)

    original = neighbours.knn_predict
    monkeypatch.setattr(neighbours, "knn_predict", spy)
    make_trainer(callbacks=[OnlineKNN(max_bank=10)]).fit(method(), datamodule=stripes())
    assert set(sizes) == {10}


def test_it_acts_every_n_epochs_and_not_in_the_sanity_check(method, stripes, make_trainer):
    class Count(OnlineKNN):
        logged = 0

        def on_validation_epoch_end(self, trainer, pl_module):
            self.logged += self._bank is not None
            super().on_validation_epoch_end(trainer, pl_module)

    callback = Count(every_n_epochs=2)
    make_trainer(max_epochs=5, callbacks=[callback]).fit(method(), datamodule=stripes())
    assert callback.logged == 2


@pytest.mark.parametrize("source", ["unlabelled", "loader"])
def test_without_labelled_images_it_is_off(source, method, stripes, make_trainer, images, spec):
    trainer = make_trainer(callbacks=[OnlineKNN()])
    if source == "loader":
        loader = DataLoader(images, batch_size=16)
        trainer.fit(method(spec=spec), loader, loader)
    else:
        trainer.fit(method(), datamodule=stripes(None))
    assert "val/loss" in trainer.callback_metrics
    assert "knn/val_acc" not in trainer.callback_metrics


def test_encode_keeps_the_order_and_drops_padding(stripes):
    data = stripes(batch_size=7)
    data.setup("fit")
    dataset = data.train_set
    x, y = encode(data, dataset, {"pixels": lambda image: image.flatten(1)}, device=torch.device("cpu"))
    assert torch.equal(x["pixels"], dataset.images.flatten(1).float())
    assert torch.equal(y, dataset.labels)
    x, y = encode(data, dataset, {"p": lambda i: i.flatten(1)}, device=torch.device("cpu"), max_rows=9, seed=3)
    again, _ = encode(data, dataset, {"p": lambda i: i.flatten(1)}, device=torch.device("cpu"), max_rows=9, seed=3)
    assert x["p"].shape[0] == len(y) == 9
    assert torch.equal(x["p"], again["p"])
    assert len(x["p"].unique(dim=0)) == 9
    part = Part(dataset, [5, 3])
    assert part.__getitems__([1, -1, 0])["index"].tolist() == [3, -1, 5]


def test_represent_is_computed_once_per_batch_and_weights(method, stripes):
    module = method(spec=stripes.native)
    module.configure_model()
    calls = []
    original = module.represent
    module.represent = lambda image: calls.append(1) or original(image)
    image = torch.randint(0, 255, (4, 1, 16, 16), dtype=torch.uint8)
    first = represent(module, image)
    assert represent(module, image) is first
    assert len(calls) == 1
    represent(module, image.clone())
    assert len(calls) == 2
    represent(module, image)
    with torch.no_grad():
        next(module.backbone.parameters()).mul_(2)
    changed = represent(module, image)
    assert len(calls) == 4
    assert not torch.equal(changed, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        ({"max_bank": -1}, "max_bank must be an integer of at least 1, got -1"),
        ({"every_n_epochs": 1.5}, "every_n_epochs must be an integer of at least 1, got 1.5"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineKNN(**arguments)
