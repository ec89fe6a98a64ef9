"""Checkpoints of older versions load with the architecture, objective and weights that they were trained with."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_ssl import MoCo, SSLModule
from lit_ssl.views import with_keys, with_views

FILES = Path(__file__).parent / "checkpoints"


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8, generator=generator)


def test_moco_v3_of_0_1_0(pixels, make_trainer):
    """A perceptron with a predictor, two epochs of MoCo at version 3's settings.

    It knows neither ``loss_scale`` nor ``predictor_last_norm``. The numbers are what version 0.1.0 computed itself.
    """
    method = MoCo.load_from_checkpoint(FILES / "moco_0.1.0.ckpt").eval()
    assert isinstance(method.predictor[-1], nn.BatchNorm1d)
    batch = {"image": pixels, "index": torch.arange(16), "label": torch.full((16,), -1)}
    with torch.no_grad():
        loss = method.loss(with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype))["loss"]
    assert loss.item() == pytest.approx(2.7526302337646484, rel=1e-5)
    first = method.represent(pixels)[0, :4].tolist()
    assert first == pytest.approx([0.46424737, -0.43238851, 0.36277187, -0.06928235], abs=1e-5)
    make_trainer(max_epochs=1, precision="bf16-true").fit(method, torch.utils.data.DataLoader(pixels, batch_size=8))
    assert method.follower.masters is not None


EMBEDDINGS = torch.load(FILES / "embeddings_0.1.0.pt", weights_only=True)


@pytest.mark.parametrize("name", sorted(EMBEDDINGS))
def test_embeddings_of_0_1_0(name):
    """Each method, after two steps on images of 8x8 pixels; the embeddings are what version 0.1.0 computed itself."""
    pixels = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    method = SSLModule.load_from_checkpoint(FILES / f"{name}_0.1.0.ckpt")
    assert type(method).__name__.lower() == name
    torch.testing.assert_close(method.represent(pixels), EMBEDDINGS[name], rtol=1e-5, atol=1e-6)
    assert method.untrained().represent(pixels).shape == EMBEDDINGS[name].shape
