"""MAE against its authors' model, written out from the paper's equations."""

import math

import pytest
import torch
from small_mae import keys, mae, pictures

from lit_ssl import ImageSpec
from lit_ssl.networks import mask_of


def layer_norm(x, w, name):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return torch.einsum("nld,ed->nle", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def block(x, w, name, heads):
    """Attention and a perceptron, each added to what it reads after a LayerNorm (Vaswani 2017; Dosovitskiy 2020)."""
    q, k, v = linear(layer_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").chunk(3, -1)
    attended = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        weights = torch.exp(torch.einsum("nid,njd->nij", a, b) / math.sqrt(a.shape[-1]))
        attended.append(torch.einsum("nij,njd->nid", weights / weights.sum(-1, keepdim=True), c))
    x = x + linear(torch.cat(attended, -1), w, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
    return x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, w, f"{name}.mlp.fc2")


def positions(side, dim):
    """Appendix A.1: sines and cosines of a patch's column, then of its row; zeros for CLS."""
    table = torch.zeros(1 + side * side, dim, dtype=torch.float64)
    for place in range(side * side):
        for half, coordinate in enumerate((place % side, place // side)):
            for i in range(dim // 4):
                angle = coordinate / 10000 ** (i / (dim / 4))
                table[1 + place, half * dim // 2 + i] = math.sin(angle)
                table[1 + place, half * dim // 2 + dim // 4 + i] = math.cos(angle)
    return table


def reference_loss(w, image, hidden, *, patch, heads, decoder_heads, norm_pix):
    """He et al. 2021, section 3, one image at a time; ``hidden`` bool (N, L) says which patches are masked."""
    side, channels = image.shape[-1] // patch, image.shape[1]
    total, count = 0.0, 0
    for picture, mask in zip(image, hidden, strict=True):
        squares = [
            picture[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            for r in range(side)
            for c in range(side)
        ]
        visible = [place for place in range(side**2) if not mask[place]]
        kernel = w["patch_embed.proj.weight"].flatten(1)
        tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
        for place in visible:
            token = kernel @ squares[place].flatten() + w["patch_embed.proj.bias"]
            tokens.append(token + w["pos_embed"][0, 1 + place])
        x = torch.stack(tokens)[None]
        for i in range(2):
            x = block(x, w, f"blocks.{i}", heads)
        x = linear(layer_norm(x, w, "norm"), w, "decoder_embed")[0]
        everything = [x[0] + w["decoder_pos_embed"][0, 0]]
        for place in range(side**2):
            token = w["mask_token"][0, 0] if mask[place] else x[1 + visible.index(place)]
            everything.append(token + w["decoder_pos_embed"][0, 1 + place])
        x = torch.stack(everything)[None]
        for i in range(2):
            x = block(x, w, f"decoder_blocks.{i}", decoder_heads)
        pred = linear(layer_norm(x, w, "decoder_norm"), w, "decoder_pred")[0, 1:]
        for place in range(side**2):
            if mask[place]:
                target = squares[place].permute(1, 2, 0).flatten()
                if norm_pix:
                    target = (target - target.mean()) / (target.var(correction=1) + 1e-6).sqrt()
                total = total + (pred[place] - target).square().sum() / (patch**2 * channels)
                count += 1
    return total / count


def reference_weights(*, side, patch, channels, dim, decoder_dim):
    """Random weights of a small model, under the names of the authors' checkpoints."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.2

    def layer(name, inputs, outputs):
        return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}

    def norm(name, width):
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    def transformer(name, width):
        return {
            **norm(f"{name}.norm1", width),
            **layer(f"{name}.attn.qkv", width, 3 * width),
            **layer(f"{name}.attn.proj", width, width),
            **norm(f"{name}.norm2", width),
            **layer(f"{name}.mlp.fc1", width, 4 * width),
            **layer(f"{name}.mlp.fc2", 4 * width, width),
        }

    w = {"cls_token": draw(1, 1, dim), "pos_embed": positions(side, dim)[None], "mask_token": draw(1, 1, decoder_dim)}
    w |= {"patch_embed.proj.weight": draw(dim, channels, patch, patch), "patch_embed.proj.bias": draw(dim)}
    w |= {**transformer("blocks.0", dim), **transformer("blocks.1", dim), **norm("norm", dim)}
    w |= {"decoder_pos_embed": positions(side, decoder_dim)[None], **layer("decoder_embed", dim, decoder_dim)}
    w |= {**transformer("decoder_blocks.0", decoder_dim), **transformer("decoder_blocks.1", decoder_dim)}
    return w | {**norm("decoder_norm", decoder_dim), **layer("decoder_pred", decoder_dim, patch**2 * channels)}


OURS = {
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.embed",
    "decoder_blocks": "decoder.blocks",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.predict",
}


def our_name(theirs):
    head, dot, rest = theirs.partition(".")
    return OURS.get(head, f"backbone.{head}") + dot + rest


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_authors_model_has_the_same_loss_and_gradients(norm_pix):
    spec = ImageSpec(12, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    method = mae(
        spec,
        options={"patch_size": 3},
        norm_pix=norm_pix,
        mask_ratio=0.7,
        decoder_dim=12,
        decoder_depth=2,
        decoder_heads=3,
    ).double()
    weights = reference_weights(side=4, patch=3, channels=3, dim=16, decoder_dim=12)
    places = weights.pop("decoder_pos_embed")
    torch.testing.assert_close(method.decoder.positions, places[:, 1:], rtol=0, atol=1e-6)  # no parameter of ours
    method.load_state_dict({our_name(name): weight for name, weight in weights.items()}, strict=True)
    method.decoder.positions.copy_(places[:, 1:])  # to the last digit

    image, key = pictures(4, spec) / 255.0, keys(4)
    ours = method.loss({"views": [image.double()], "key": key})["loss"]
    hidden = mask_of(method.visible_patches(key), 16)
    assert hidden.sum(1).tolist() == [12] * 4  # floor(16 * 0.3) = 4 are seen

    weights = {name: weight.requires_grad_(name != "pos_embed") for name, weight in weights.items()}
    x = method.normalize(image.double())
    theirs = reference_loss(
        {**weights, "decoder_pos_embed": places}, x, hidden, patch=3, heads=2, decoder_heads=3, norm_pix=norm_pix
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    ours.backward()
    theirs.backward()
    parameters = dict(method.named_parameters())
    for name, weight in weights.items():
        if name != "pos_embed":
            torch.testing.assert_close(parameters[our_name(name)].grad, weight.grad, rtol=1e-8, atol=1e-12, msg=name)
