"""Law 3: callbacks act every step, are shown to have acted, and weights are bit-identical without them."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lit_ssl.callbacks import (
    AugmentedViews,
    EmbeddingMap,
    HealthGuard,
    LearningRate,
    NearestNeighbours,
    OnlineKNN,
    OnlineLinearProbe,
    RepresentationMonitor,
    SummaryTable,
    Throughput,
)


def watchers():
    return [
        OnlineLinearProbe(every_n_steps=1),
        HealthGuard(),
        OnlineKNN(),
        RepresentationMonitor(),
        AugmentedViews(every_n_epochs=1),
        EmbeddingMap(every_n_epochs=1),
        NearestNeighbours(every_n_epochs=1),
        SummaryTable(on_fit_end=True, draws=2),
        LearningRate(),
        Throughput(),
    ]


def run(folder, module, data, make_trainer, callbacks):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    trainer = make_trainer(
        max_epochs=2,
        log_every_n_steps=1,
        val_check_interval=2,
        logger=CSVLogger(folder, name=None, version=""),
        callbacks=callbacks,
    )
    trainer.fit(module, datamodule=data)
    draws = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    return module, trainer, draws


@pytest.mark.parametrize("labels", ["train", "apart", None])
@pytest.mark.parametrize("backbone", ["mlp", "convnet"])  # without and with BatchNorm
def test_weights_are_bit_identical_with_and_without_callbacks(
    labels, backbone, method, stripes, make_trainer, tmp_path, capsys
):
    options = {} if backbone == "mlp" else {"backbone": "convnet", "backbone_options": None}
    alone, _, plain_draws = run(tmp_path / "alone", method(**options), stripes(labels), make_trainer, [])
    callbacks = watchers()
    folder = tmp_path / "watched"
    watched, trainer, draws = run(folder, method(**options), stripes(labels), make_trainer, callbacks)

    expected, found = alone.state_dict(), watched.state_dict()
    assert expected.keys() == found.keys()  # nothing was registered
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert torch.equal(draws[0], plain_draws[0])
    assert draws[1:] == plain_draws[1:]
    assert watched.training == alone.training

    metrics = set(trainer.callback_metrics)
    spectrum = {f"spectrum/{name}" for name in ("rankme", "alpha", "alignment", "uniformity", "std")}
    assert spectrum <= metrics
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {f"augmented-views-step{n}.png" for n in (0, 4)} <= pictures
    assert {f"embedding-map-step{n}.png" for n in (2, 4, 6, 8)} <= pictures
    assert {f"nearest-neighbours-step{n}.png" for n in (2, 4, 6, 8)} <= pictures
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert {"lr", "time/images_per_s"} <= set(header.split(","))
    probe = callbacks[0]
    if labels:
        assert {"probe/train_acc", "probe/val_acc", "knn/val_acc"} <= metrics
        assert probe.probe.updates == 8  # it learned at each of 2 x 4 steps
        (table,) = (callback for callback in callbacks if isinstance(callback, SummaryTable))
        assert table.scores is not None
        assert "this run" in capsys.readouterr().out
    else:
        assert not {"probe/val_acc", "knn/val_acc"} & metrics
        assert "No table" in capsys.readouterr().out


def test_the_law_would_catch_a_callback_that_draws_a_number_or_moves_a_weight(method, stripes, make_trainer, tmp_path):
    class Meddler(OnlineKNN):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.no_grad():
                next(pl_module.parameters()).add_(1e-7)

    alone, _, _ = run(tmp_path / "a", method(), stripes(), make_trainer, [])
    meddled, _, _ = run(tmp_path / "b", method(), stripes(), make_trainer, [Meddler()])
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), meddled.parameters(), strict=True))
