import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lit_ssl import SimCLR, evaluation
from lit_ssl.callbacks import RepresentationMonitor
from lit_ssl.callbacks.features import HeldOutSample
from lit_ssl.views import SingleView


class Constant(nn.Module):
    """An encoder that has collapsed to a point, or, with ``line``, to a line."""

    num_features = 8

    def __init__(self, line=False, value=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))
        self.line = line

    def forward(self, x):
        mean = (x.mean((1, 2, 3))[:, None] * 50 - 0.5).sign() if self.line else x.new_ones(len(x), 1)
        return mean * self.scale * torch.arange(1.0, 9, device=x.device)


def collapse_warnings(record):
    return [str(w.message) for w in record if "collapsed" in str(w.message)]


def test_it_logs_the_evaluations_numbers(method, stripes, make_trainer):
    module, data = method(), stripes()
    trainer = make_trainer(max_epochs=2, callbacks=[RepresentationMonitor()])
    trainer.fit(module, datamodule=data)
    z = module.represent(data.val_set.images)
    found = trainer.callback_metrics
    assert found["spectrum/rankme"] == pytest.approx(evaluation.rankme(z), rel=1e-4)
    assert found["spectrum/alpha"] == pytest.approx(evaluation.alpha_req(z), rel=1e-3)
    assert found["spectrum/uniformity"] == pytest.approx(evaluation.uniformity(z), rel=1e-4)
    assert found["spectrum/std"] == pytest.approx(evaluation.feature_std(z), rel=1e-4)
    assert 0 < found["spectrum/alignment"] < 4


def test_identical_views_are_aligned(stripes, make_trainer, tiny):
    class Twice(SingleView):
        def __call__(self, image, key, spec, dtype):
            return super().__call__(image, key, spec, dtype) * 2

    trainer = make_trainer(callbacks=[RepresentationMonitor()])
    trainer.fit(SimCLR(**tiny, views=Twice()), datamodule=stripes())
    assert trainer.callback_metrics["spectrum/alignment"] == pytest.approx(0, abs=1e-5)


def test_the_sample_is_capped_and_spread_over_batches(method, stripes, make_trainer):
    class Spy(RepresentationMonitor):
        def on_validation_epoch_end(self, trainer, pl_module):
            self.sizes = [len(part) for part in self._sample._parts["clean"]]
            super().on_validation_epoch_end(trainer, pl_module)

    spy = Spy(max_samples=12)
    trainer = make_trainer(callbacks=[spy], num_sanity_val_steps=0)
    trainer.fit(method(), datamodule=stripes())  # batches of 16, 16, 8
    assert spy.sizes == [4, 4, 4]


def test_sample_never_exceeds_its_limit():
    class Endless:
        num_val_batches = (math.inf,)
        testing = False

    sample = HeldOutSample(10)
    sample.start(Endless())
    taken = 0
    for _ in range(4):
        rows = sample.rows(4)
        if rows:
            sample.add(x=torch.zeros(rows, 2))
        taken += rows
    assert taken == 10


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (Constant(), "all images get nearly the same embedding"),
        (Constant(value=math.nan), "nan or infinite"),
    ],
)
def test_it_warns_once_of_a_collapse(encoder, words, method, stripes, make_trainer):
    module = method(backbone=encoder, backbone_options=None, lr=1e-9, weight_decay=0.0)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        make_trainer(max_epochs=3, callbacks=[RepresentationMonitor()]).fit(module, datamodule=stripes())
    (message,) = collapse_warnings(record)
    assert words in message


def test_a_line_is_a_collapse_of_rank():
    monitor = RepresentationMonitor()
    line = torch.cat([torch.ones(50, 1), -torch.ones(50, 1)]) * torch.arange(1.0, 9)
    values = monitor._measure({"clean": line})
    assert values["std"] > 0.5
    assert "dimensions" in monitor._problem(values)


def test_a_healthy_encoder_is_not_warned_of(method, stripes, make_trainer):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        make_trainer(max_epochs=2, callbacks=[RepresentationMonitor()]).fit(method(), datamodule=stripes())
    assert not collapse_warnings(record)


def test_a_plain_loader_is_enough(method, images, spec, make_trainer):
    loader = DataLoader(images, batch_size=16)
    trainer = make_trainer(callbacks=[RepresentationMonitor()])
    trainer.fit(method(spec=spec), loader, loader)
    assert {"spectrum/rankme", "spectrum/alignment"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_samples": 1}, "max_samples must be an integer of at least 2, got 1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be an integer of at least 1, got 0"),
        ({"min_std": -0.1}, "min_std must be a finite number of at least 0, got -0.1"),
        ({"min_rank": math.inf}, "min_rank must be a finite number of at least 0, got inf"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepresentationMonitor(**arguments)
