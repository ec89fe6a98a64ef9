"""Each method as it comes, on images that come with the package."""

import pytest

import lit_ssl
from lit_ssl.datamodules import CaptionedShapes, Quickstart

METHODS = ("SimCLR", "MoCo", "MAE", "MCL", "Fusion", "VAE", "LeJEPA", "CLIP")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_fits_without_an_argument(name, make_trainer):
    data = (CaptionedShapes if name == "CLIP" else Quickstart)(batch_size=4)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=1)
    trainer.fit(getattr(lit_ssl, name)(), datamodule=data)
    assert trainer.global_step == 1
    assert trainer.callback_metrics["train/loss"].isfinite()
