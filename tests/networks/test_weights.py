"""Weights from a file: all of them, or an error that lists what does not fit."""

import copy
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_ssl.networks import build_backbone, load_backbone
from lit_ssl.spec import ImageSpec


def convnet():
    return build_backbone("convnet", ImageSpec(16, 1), options={"width": 4, "stages": 2})


@pytest.fixture
def source():
    model = convnet()
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def lightning(state):
    return {"epoch": 3, "global_step": 7, "state_dict": state, "hyper_parameters": {"lr": 0.1}}


FORMS = {
    "plain.pth": lambda s: s,
    "wrapped.pt": lambda s: {"state_dict": s},
    "fair.pth": lambda s: {"model": s, "epoch": 3},
    "parallel.pt": lambda s: {f"module.{k}": v for k, v in s.items()},
    "lightning.ckpt": lambda s: lightning({f"backbone.{k}": v for k, v in s.items()} | {"projector.w": torch.ones(2)}),
    "compiled.ckpt": lambda s: lightning({f"backbone._orig_mod.{k}": v for k, v in s.items()}),
    "weights.safetensors": lambda s: s,
    "old.pth": lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, source, tmp_path):
    path, content = tmp_path / form, FORMS[form](dict(source.state_dict()))
    save_file(content, path) if form.endswith("safetensors") else torch.save(content, path)
    target = convnet()
    load_backbone(target, str(path))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_a_compiled_backbone_is_filled(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pt")
    target = convnet()
    load_backbone(torch.compile(target), tmp_path / "w.pt")
    assert torch.equal(target.stem[0].weight, source.stem[0].weight)


def test_a_classifier_is_left_out_with_a_note(source, tmp_path, caplog):
    torch.save(
        dict(source.state_dict()) | {"fc.weight": torch.ones(2, 3), "head.fc.bias": torch.ones(2)}, tmp_path / "w.pt"
    )
    with caplog.at_level(logging.INFO, logger="lit_ssl"):
        load_backbone(convnet(), tmp_path / "w.pt")
    assert "fc.weight, head.fc.bias" in caplog.text


def test_what_does_not_fit_is_listed_and_nothing_is_changed(source, tmp_path):
    state = dict(source.state_dict())
    del state["stem.0.weight"], state["stem.1.bias"]
    state["extra.weight"] = torch.ones(1)
    state["stem.1.weight"] = torch.ones(99)
    torch.save(state, tmp_path / "w.pt")
    target = convnet()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match="does not fit the backbone ConvNet") as error:
        load_backbone(target, tmp_path / "w.pt")
    for part in (
        "2 missing: stem.0.weight, stem.1.bias",
        "1 unexpected: extra.weight",
        "1 of another shape: stem.1.weight (file (99,), backbone (2,))",
    ):
        assert part in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_backbone(convnet(), tmp_path / "none.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pt")
    with pytest.raises(ValueError, match="cannot be read as weights only"):
        load_backbone(convnet(), tmp_path / "object.pt")
    torch.save({"lr": 0.1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"holds no state dict .*\['lr'\]"):
        load_backbone(convnet(), tmp_path / "other.pt")
    torch.save({"stem.0.0.weight": torch.ones(999)}, tmp_path / "flipped.pt")
    content = bytearray((tmp_path / "flipped.pt").read_bytes())
    content[content.index(torch.ones(99).numpy().tobytes())] ^= 1  # in a weight, which torch.load does not compare
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.pt is damaged \(its record .* does not match its checksum\)"):
        load_backbone(convnet(), tmp_path / "flipped.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of weights")
        with pytest.raises(ValueError, match="cannot be read"):
            load_backbone(convnet(), tmp_path / name)
