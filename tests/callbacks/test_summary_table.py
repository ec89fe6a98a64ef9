import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_ssl import ImageSpec, evaluation
from lit_ssl.callbacks import SummaryTable
from lit_ssl.callbacks.summary import raw_pixels


def expected_scores(module, data, encoders, draws):
    train, held = data.labelled_set, data.val_set
    return {
        name: evaluation.evaluate(encode(train.images), train.labels, encode(held.images), held.labels, draws=draws)
        for name, encode in encoders(module).items()
    }


def encoders(module):
    return {
        "raw_pixels": lambda image: (image / 255).flatten(1),
        "untrained": module.untrained().represent,
        "trained": module.represent,
    }


def test_test_prints_the_evaluations_scores(method, stripes, make_trainer, tmp_path, capsys):
    module, data = method(), stripes("apart")
    table = SummaryTable(draws=3)
    trainer = make_trainer(max_epochs=2, callbacks=[table])
    trainer.fit(module, datamodule=data)
    assert "linear probe" not in capsys.readouterr().out  # not asked for at the end of fit
    trainer.test(module, datamodule=data, verbose=False)
    expected = expected_scores(module, data, encoders, 3)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found) == ["raw_pixels", "untrained", "trained"]
    for name, scores in evaluation.summary(expected).items():
        assert found[name] == pytest.approx(scores, abs=1e-6)
    out = capsys.readouterr().out
    assert evaluation.format_scores(table.scores) in out
    assert "Accuracy on 40 held-out images, 24 to train on:" in out
    assert str(tmp_path / "summary.json") in out


def test_the_end_of_fit_lists_the_files(method, stripes, make_trainer, tmp_path, capsys):
    logger = CSVLogger(tmp_path, name="run", version="v")
    saver = ModelCheckpoint(filename="last")
    trainer = make_trainer(
        callbacks=[SummaryTable(on_fit_end=True, draws=2), saver], logger=logger, enable_checkpointing=True
    )
    (tmp_path / "run" / "v" / "pictures").mkdir(parents=True)
    trainer.fit(method(), datamodule=stripes())
    out = capsys.readouterr().out
    folder = tmp_path / "run" / "v"
    for name in ("summary.json", "metrics.csv", "pictures", "checkpoints/last.ckpt"):
        assert str(folder / name) in out
        assert (folder / name).exists()


def test_training_rows_can_be_capped(method, stripes, make_trainer, capsys):
    module, data = method(), stripes()
    trainer = make_trainer(callbacks=[SummaryTable(draws=2, max_train=20)])
    trainer.test(module, datamodule=data, verbose=False)
    assert "20 to train on" in capsys.readouterr().out


@pytest.mark.parametrize(("labels", "words"), [(None, "it needs labels"), ("loader", "a data module with labels")])
def test_without_labels_one_line_says_why(labels, words, method, stripes, make_trainer, tmp_path, capsys, images, spec):
    trainer = make_trainer(callbacks=[SummaryTable(on_fit_end=True)])
    if labels == "loader":
        loader = DataLoader(images, batch_size=16)
        trainer.fit(method(spec=spec), loader, loader)
    else:
        trainer.fit(method(), datamodule=stripes(None))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "table" in line]
    assert words in line
    assert not (tmp_path / "summary.json").exists()


def test_a_diverged_run_is_told_and_not_a_crash(method, stripes, make_trainer, capsys, tmp_path):
    module = method(spec=stripes.native)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.backbone.parameters():
            parameter.fill_(torch.nan)
    make_trainer(callbacks=[SummaryTable(draws=2)]).test(module, datamodule=stripes(), verbose=False)
    assert "the run has diverged" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


def test_fast_dev_run_writes_nothing(method, stripes, make_trainer, tmp_path):
    make_trainer(callbacks=[SummaryTable(on_fit_end=True)], fast_dev_run=True).fit(method(), datamodule=stripes())
    assert not (tmp_path / "summary.json").exists()


def test_raw_pixels_are_the_clean_view_of_bounded_length():
    image = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(raw_pixels(image, ImageSpec(16, 1)), (image / 255).flatten(1))
    large = torch.full((2, 3, 96, 96), 51, dtype=torch.uint8)
    x = raw_pixels(large, ImageSpec(96, 3))
    assert 2000 < x.shape[1] <= 4096
    torch.testing.assert_close(x, torch.full_like(x, 0.2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_fit_end": 1}, "on_fit_end must be true or false, got 1"),
        ({"draws": 1}, "draws must be an integer of at least 2, got 1"),
        ({"max_train": 3}, "max_train must be an integer of at least 10 or None, got 3"),
    ],
)
def test_arguments_are_validated(arguments, message):
    with pytest.raises(ValueError, match=message):
        SummaryTable(**arguments)
