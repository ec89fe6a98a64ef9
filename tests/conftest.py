import logging
import os

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_ssl import ImageSpec

if "PYTEST_XDIST_WORKER" in os.environ:  # files run side by side, with one thread each
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def spec():
    return ImageSpec(16, 1)


@pytest.fixture
def images(spec):
    """64 gray images: blobs of noise at three scales, so that they differ from one another."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 1, 4, 4, generator=generator)
    fine = torch.rand(64, 1, 16, 16, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=spec.size, mode="bilinear") * 0.8 + fine * 0.2
    return (image * 255).to(torch.uint8)


@pytest.fixture
def loader(images):
    return DataLoader(images, batch_size=16)


@pytest.fixture
def make_trainer(tmp_path):
    def make(**kwargs):
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        defaults = {"default_root_dir": tmp_path, "accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet}
        return Trainer(**{**defaults, **kwargs})

    return make


@pytest.fixture
def tiny():
    """Arguments that make any method small."""
    return {"backbone": "mlp", "backbone_options": {"hidden": (32, 16)}}


@pytest.fixture
def bert(tmp_path):
    """The folder of a tiny BERT and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=8, max_position_embeddings=12, **sizes))
    model.save_pretrained(tmp_path)
    return tmp_path
