import math
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import DataLoader

from lit_ssl import CLIP, ImageSpec
from lit_ssl.checkpoint import CheckpointError
from lit_ssl.datamodules import CaptionedShapes
from lit_ssl.losses import clip_loss, nt_xent, siglip_loss
from lit_ssl.methods.clip import _numbers
from lit_ssl.optim import parameter_groups
from lit_ssl.views import SLIPViews, with_keys, with_views

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
CAPTIONS = [f"{size} {colour} square" for colour in COLOURS for size in ("a small", "a large")]
SMALL = {"text_options": {"width": 16, "depth": 1, "heads": 2}, "embedding_dim": 8}
VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"embed_dim": 32, "depth": 2, "num_heads": 2}}
SPEC = ImageSpec(16, 3)


def squares(n=16):
    """Squares in eight kinds and as many captions."""
    image = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    for i in range(n):
        half = 6 if i % 2 else 3
        image[i, :, 8 - half : 8 + half, 8 - half : 8 + half] = torch.tensor(list(COLOURS.values())[i // 2 % 4]).view(
            3, 1, 1
        ) * (255 - i)
    return image, [CAPTIONS[i % 8] for i in range(n)]


def build(tiny=None, **options):
    method = CLIP(spec=SPEC, **{**SMALL, **(tiny or VIT), **options})
    method.configure_model()
    return method


def batch_for(method, n=16):
    image, text = squares(n)
    batch = {"image": image, "text": text, "index": torch.arange(n), "label": torch.full((n,), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


@pytest.fixture
def loader():
    image, text = squares(64)
    return DataLoader([{"image": i, "text": t} for i, t in zip(image, text, strict=True)], batch_size=16)


def towers(method, batch):
    image = method.image_projection(method.backbone(method.normalize(batch["views"][0])))
    return image, method.text_projection(method.text(method.text.tokenize(batch["text"])))


def test_its_loss_is_clips_of_the_two_towers():
    method = build(beta=0.5, mask_duplicates=True).eval()
    batch = batch_for(method)
    losses = method.loss(batch)
    options = {"logit_scale": 1 / 0.07, "beta": 0.5, "duplicates": torch.arange(16) % 8}
    torch.testing.assert_close(losses["loss"], clip_loss(*towers(method, batch), **options))
    assert losses["logit_scale"].item() == pytest.approx(1 / 0.07)
    plain = build(beta=0.5, mask_duplicates=False).eval()
    options["duplicates"] = None
    torch.testing.assert_close(plain.loss(batch)["loss"], clip_loss(*towers(plain, batch), **options))


def test_siglips_is_the_sigmoid_loss_with_a_learned_bias():
    method = build(loss="siglip").eval()
    batch = batch_for(method)
    options = {"logit_scale": 10.0, "logit_bias": -10.0, "duplicates": torch.arange(16) % 8}
    torch.testing.assert_close(method.loss(batch)["loss"], siglip_loss(*towers(method, batch), **options))
    assert build(loss="siglip", logit_scale=3.0, logit_bias=-1.0).logit_bias.item() == -1


def test_slips_adds_simclr_on_two_more_views():
    method = build(simclr_weight=0.5, simclr_hidden=16, simclr_dim=8).eval()
    assert method.views == SLIPViews()
    batch = batch_for(method)
    losses = method.loss(batch)
    z1, z2 = (method.projector(method.backbone(method.normalize(view))) for view in batch["views"][1:])
    torch.testing.assert_close(losses["simclr"], nt_xent(z1, z2, temperature=0.1))
    torch.testing.assert_close(losses["loss"], losses["image_text"] + 0.5 * losses["simclr"])
    alone = build().eval()
    batch["views"] = batch["views"][:1]
    torch.testing.assert_close(losses["image_text"], alone.loss(batch)["loss"])


VARIANTS = {
    "clip": {},
    "siglip": {"loss": "siglip"},
    "slip": {"simclr_weight": 1.0, "simclr_hidden": 16, "simclr_dim": 8},
    "flip": {"mask_ratio": 0.5},
    "mean": {"text_options": {"width": 16, "depth": 1, "heads": 2, "pool": "mean", "causal": True}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient_and_logits_do_not_decay(name):
    method = build(**VARIANTS[name])
    method.loss(batch_for(method))["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.logit_scale.grad.abs() > 0
    decaying = {id(p) for p in parameter_groups(method, 0.2)[0]["params"]}
    assert id(method.text_projection.weight) in decaying
    assert not any(id(p) in decaying for n, p in method.named_parameters() if n.startswith("logit_"))


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_it_learns_which_caption_is_whose(name, precision, loader, make_trainer, tiny):
    method = CLIP(spec=SPEC, lr=0.01, **{**VARIANTS[name], **SMALL, **tiny})
    trainer = make_trainer(max_epochs=30, check_val_every_n_epoch=30, precision=precision)
    trainer.fit(method, loader, loader)
    image, text = squares(8)
    similarity = method.represent_image(image) @ method.represent_text(text).T
    assert (similarity.argmax(1) == torch.arange(8)).float().mean() >= 0.75
    assert (similarity.argmax(0) == torch.arange(8)).float().mean() >= 0.75
    assert {"train/loss", "train/logit_scale", "val/loss"} <= set(trainer.callback_metrics)


def test_it_runs_in_half_precision(loader, make_trainer):
    for options in VARIANTS.values():
        method = CLIP(spec=SPEC, **{**SMALL, **VIT, **options})
        trainer = make_trainer(precision="bf16-true")
        trainer.fit(method, loader, loader)
        assert trainer.callback_metrics["val/loss"].isfinite()
        assert method.represent_text(["a caption"]).dtype == torch.float32


def test_it_fits_captioned_shapes_as_it_stands(make_trainer, tiny):
    trainer = make_trainer()
    method = CLIP(**{**SMALL, **tiny})
    trainer.fit(method, CaptionedShapes(train_size=32, val_size=16, batch_size=16))
    assert trainer.callback_metrics["val/loss"].isfinite()


def tokens_seen(method, batch):
    seen = []
    hook = method.backbone.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    loss = method.loss(batch)["loss"]
    hook.remove()
    return seen, loss


def test_masks_drop_tokens_in_training_and_only_there():
    method = build(mask_ratio=0.75)
    batch = batch_for(method)
    whole = method.grid.tokens
    seen, loss = tokens_seen(method, batch)
    assert seen == [1 + whole // 4]
    assert torch.equal(tokens_seen(method, batch)[1], loss)  # the mask belongs to the sample's key
    other = {**batch, "key": batch["key"] + 1}
    assert not torch.equal(tokens_seen(method, other)[1], loss)
    method.eval()
    seen, loss = tokens_seen(method, batch)
    assert seen == [1 + whole]
    torch.testing.assert_close(loss, build().eval().loss(batch)["loss"])
    method.train()
    seen = []
    method.backbone.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    method.represent_image(batch["image"])
    assert seen == [1 + whole]


def test_masks_need_a_vit(tiny):
    with pytest.raises(ValueError, match=r"mask_ratio must be 0 for a backbone that is no ViT \(MLP\), got 0.5"):
        build(tiny, mask_ratio=0.5)


@pytest.mark.parametrize(("name", "highest", "lowest"), [("clip", 100.0, 1.0), ("siglip", 1000.0, 0.1)])
def test_clips_scale_stays_between_1_and_100(name, highest, lowest, loader, make_trainer, tiny):
    for value, expected in ((1000.0, highest), (0.1, lowest)):
        method = build(tiny, lr=1e-6, **VARIANTS[name])
        with torch.no_grad():
            method.logit_scale.fill_(math.log(value))
        make_trainer(max_steps=1, max_epochs=-1).fit(method, loader)
        assert method.logit_scale.exp().item() == pytest.approx(expected, rel=1e-4)


def test_captions_are_numbered_alike_everywhere():
    numbers = _numbers(["a red circle", "a blue circle", "a red circle", "日本", "\ud800"])
    assert numbers.dtype == torch.int64
    assert numbers[0] == numbers[2] == 3868813310041309068  # of the caption alone: no salt of the process
    assert len(set(numbers.tolist())) == 4


def test_representations_are_unit_vectors_and_leave_the_module_alone(tiny):
    method = build(tiny)
    method.train()
    method.text.eval()
    image, text = squares(8)
    for rows in (method.represent_image(image), method.represent_text(text)):
        assert (rows.shape, rows.dtype, rows.requires_grad) == ((8, 8), torch.float32, False)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))
    assert (method.training, method.text.training) == (True, False)
    assert method.represent_text([]).shape == (0, 8)
    with pytest.raises(TypeError, match="text must be a list of captions, got one string: 'a circle'"):
        method.represent_text("a circle")


def test_a_rank_without_rows_has_a_loss_of_zero(tiny):
    method = build(tiny).eval()
    batch = batch_for(method)
    none = {k: v[:0] if k != "views" else [view[:0] for view in v] for k, v in batch.items()}
    assert method.loss(none)["loss"].item() == 0


def test_a_batch_without_captions_is_named(tiny, make_trainer, loader):
    method = build(tiny)
    images = DataLoader(squares(16)[0], batch_size=16)
    with pytest.raises(ValueError, match=r"the batch has no 'text': use a data module .*CaptionedShapes"):
        make_trainer().fit(method, images)
    batch = batch_for(method)
    for text in (batch["text"][:3], [1] * 16):
        with pytest.raises(ValueError, match=r"text must be a list of one str an image \(16\)"):
            method.loss({**batch, "text": text})


def test_a_checkpoint_loads_by_itself(loader, make_trainer, tmp_path):
    method = CLIP(spec=SPEC, **VARIANTS["slip"], **SMALL, **VIT)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = CLIP.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    image, text = squares(8)
    assert loaded.views == SLIPViews()
    assert torch.equal(loaded.represent_image(image), method.represent_image(image))
    assert torch.equal(loaded.represent_text(text), method.represent_text(text))
    assert torch.equal(loaded.represent(image), method.represent(image))


def test_a_checkpoint_holds_the_content_of_a_tokenizer_file(loader, make_trainer, tmp_path, tiny):
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(["?", *words])}, unk_token="?"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rust.save(str(tmp_path / "tokenizer.json"))
    method = CLIP(spec=SPEC, tokenizer=str(tmp_path / "tokenizer.json"), **SMALL, **tiny)
    trainer = make_trainer()
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "tokenizer.json").unlink()
    loaded = CLIP.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.text.token_embedding.num_embeddings == len(words) + 1
    assert torch.equal(loaded.represent_text(CAPTIONS), method.represent_text(CAPTIONS))


def test_a_text_tower_of_transformers(bert, loader, make_trainer, tmp_path, tiny):
    pytest.importorskip("transformers")
    small = {name: value for name, value in SMALL.items() if name != "text_options"}
    method = CLIP(spec=SPEC, text_encoder=f"transformers:{bert}", **small, **tiny)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(method, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"'text_encoder' is 'transformers:.*say so yourself: text_encoder="):
        CLIP.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded = CLIP.load_from_checkpoint(tmp_path / "a.ckpt", text_encoder=f"transformers:{bert}")
    assert torch.equal(loaded.represent_text(CAPTIONS), method.represent_text(CAPTIONS))
    assert method.represent_text(CAPTIONS).unique(dim=0).shape[0] > 1


def test_nothing_is_read_back_from_the_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device used here
    for name in VARIANTS:
        method = build(**VARIANTS[name])
        batch = batch_for(method)
        batch["views"] = [view.to("meta") for view in batch["views"]]  # a device whose values cannot be read
        loss = method.to("meta").loss(batch)["loss"]
        assert (loss.device.type, loss.shape) == ("meta", ())


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("loss", "softmax", {}),
        ("beta", -1.0, {}),
        ("beta", 1.0, {"loss": "siglip"}),
        ("mask_ratio", 1.0, {}),
        ("mask_ratio", -0.1, {}),
        ("simclr_weight", -1.0, {}),
        ("simclr_temperature", 0.0, {}),
        ("simclr_hidden", 0, {}),
        ("embedding_dim", 0, {}),
        ("context_length", 2, {}),
        ("chunk_size", 0, {}),
        ("logit_scale", 101.0, {}),
        ("logit_scale", 0.0, {"loss": "siglip"}),
        ("logit_bias", math.nan, {"loss": "siglip"}),
        ("mask_duplicates", 1, {}),
        ("text_pretrained", "no", {}),
        ("lr", 0.0, {}),
    ],
)
def test_a_bad_argument_is_named_at_construction(name, value, options):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        CLIP(**{name: value, **options})


def test_a_bad_tower_is_named():
    with pytest.raises(ValueError, match=r"text_encoder must be .*got 'lstm'"):
        build(text_encoder="lstm")
