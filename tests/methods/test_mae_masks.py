"""What MAE's encoder sees: whole images when embedding, what masks leave of them when learning."""

import pytest
import timm
import torch
from small_mae import DECODER, VIT, batch_for, keys, mae, pictures

from lit_ssl import MAE, ImageSpec
from lit_ssl.datamodules import Quickstart
from lit_ssl.networks import encode_masked, mask_of

# The encoder


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (ImageSpec(28, 1), {}),
        (ImageSpec((16, 32), 4), {"global_pool": "avg", "class_token": False}),
        (ImageSpec((24, 16), 3), {"reg_tokens": 2, "init_values": 0.1, "global_pool": "avg"}),
    ],
)
def test_the_encoder_alone_loads_into_plain_timm(spec, options, make_trainer):
    method = mae(spec, options=options, lr=1e-2)
    images = pictures(8, spec)
    make_trainer(max_epochs=2).fit(method, torch.utils.data.DataLoader(images, batch_size=4))
    patch = method.grid.patch[0]
    plain = timm.create_model(
        "vit_small_patch16_224",
        img_size=spec.size,
        in_chans=spec.channels,
        num_classes=0,
        patch_size=patch,
        **VIT,
        **options,
    )
    plain.load_state_dict(method.backbone.state_dict(), strict=True)
    x = method.normalize(images / 255.0)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), method.represent(images), rtol=1e-5, atol=1e-5)


def test_embeddings_are_those_of_whole_images(images, spec):
    method = mae(spec).eval()
    x = images[:8] / 255.0
    everything = torch.arange(method.grid.tokens).expand(8, -1)
    whole = encode_masked(method.backbone, method.normalize(x), everything, method.grid).pooled
    torch.testing.assert_close(method.embed(x), whole)
    changed = method.embed(x.clone().index_fill_(3, torch.tensor([15]), 0.5))  # no pixel is left out
    assert (changed != method.embed(x)).any(1).all()


def test_a_vit_built_by_name_starts_from_the_papers_weights(spec):
    method = mae(spec)
    assert not method.backbone.pos_embed.requires_grad
    again = MAE(spec=spec, backbone=method.backbone, **DECODER)
    with torch.no_grad():
        method.backbone.pos_embed.add_(1)
    method.backbone.pos_embed.requires_grad_()
    before = [p.clone() for p in method.backbone.parameters()]
    again.configure_model()  # a network of one's own stays as it is
    assert all(torch.equal(a, b) for a, b in zip(before, again.backbone.parameters(), strict=True))
    assert again.backbone.pos_embed.requires_grad


# Masks


def test_masks_are_those_of_the_keys_in_any_company(spec, images):
    method = mae(spec).double().eval()
    batch = batch_for(method, images[:12])

    def loss(rows):
        return method.loss({"views": [batch["views"][0][rows]], "key": batch["key"][rows]})["loss"]

    alone = torch.stack([loss([row]) for row in range(12)])
    torch.testing.assert_close(loss(list(range(12))), alone.mean())
    torch.testing.assert_close(loss([7, 2, 5]), alone[[7, 2, 5]].mean())
    other = {**batch, "key": batch["key"] + 1}
    assert not torch.equal(method.loss(other)["loss"], method.loss(batch)["loss"])


def test_masks_change_each_epoch_and_stay_in_validation(spec, images, make_trainer):
    seen = {"train": [], "val": []}

    class Recorded(MAE):
        def loss(self, batch):
            stage = "train" if self.training else "val"
            if not self.trainer.sanity_checking:
                seen[stage].append((batch["index"], self.visible_patches(batch["key"])))
            return super().loss(batch)

    method = Recorded(backbone_options=VIT, **DECODER)
    make_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=2).fit(method, Quickstart(batch_size=8))
    (first, second), (third, fourth) = seen["val"][:2], seen["val"][2:]
    for before, after in ((first, third), (second, fourth)):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
    assert len({tuple(row) for _, keep in seen["train"] for row in keep.tolist()}) == 32


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "convnet", "mlp"])
def test_nothing_hidden_reaches_the_prediction(backbone, spec, images):
    method, key = mae(spec, backbone, mask_patch=4 if backbone == "mlp" else None).eval(), keys(8)
    x, keep = method.normalize(images[:8] / 255.0), method.visible_patches(key)
    hidden = method.grid.pixels(mask_of(keep, method.grid.tokens))
    pred = method._predict(x, keep, key)
    assert torch.equal(method._predict(torch.where(hidden, x.flip(0), x), keep, key), pred)
    assert not torch.equal(method._predict(torch.where(hidden, x, x.flip(0)), keep, key), pred)
