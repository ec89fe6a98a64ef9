"""From codes and tokens back to pixels."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl import MAE, configs
from lit_ssl.networks import (
    ConvDecoder,
    MLPDecoder,
    build_backbone,
    build_patch_decoder,
    encode_masked,
    patch_grid,
    random_keep,
)
from lit_ssl.networks.decoders import PooledDecoder, TokenDecoder, decoder_options
from lit_ssl.networks.masked import Encoded
from lit_ssl.random import sample_key
from lit_ssl.spec import ImageSpec

SPEC = ImageSpec((16, 24), 2)
SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 50), st.integers(2, 50), st.integers(1, 4), st.none() | st.integers(1, 4), st.integers(0, 3))
def test_images_of_any_size(height, width, channels, own_channels, rows):
    spec = ImageSpec((height, width), channels)
    for decoder in (ConvDecoder(5, spec, own_channels, width=8), MLPDecoder(5, spec, (7,), own_channels)):
        assert decoder(noise(rows, 5)).shape == (rows, own_channels or channels, height, width)


def test_the_coarsest_map_is_of_four_to_eight_pixels():
    for side, sizes in ((28, [7, 14, 28]), (32, [4, 8, 16, 32]), (30, [8, 15, 30]), (6, [6])):
        decoder = ConvDecoder(5, ImageSpec((side, 2 * side)), width=8)
        assert [size[0] for size in decoder.sizes] == sizes
        assert len(decoder.stages) == len(sizes) - 1


@pytest.mark.parametrize("kind", [ConvDecoder, MLPDecoder])
def test_a_row_is_decoded_without_its_batch(kind):
    decoder, code = kind(5, SPEC), noise(4, 5)
    torch.testing.assert_close(decoder(code)[1:2], decoder(code[1:2]))


@pytest.mark.parametrize("kind", [ConvDecoder, MLPDecoder])
def test_it_can_paint_what_it_is_asked_to(kind):
    torch.manual_seed(0)
    decoder, code, images = kind(8, SPEC), torch.eye(8), F.interpolate(noise(8, 2, 4, 6), SPEC.size, mode="bilinear")
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (decoder(code) - images).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * images.square().mean()


def test_without_hidden_layers_a_perceptron_is_a_linear_map():
    decoder = MLPDecoder(5, SPEC, ())
    a, b = noise(3, 5), noise(3, 5, seed=1)
    torch.testing.assert_close(decoder(a + b), decoder(a) + decoder(b) - decoder(torch.zeros(1, 5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvDecoder(5, SPEC, width=12), r"width must be a multiple of 8, got 12"),
        (lambda: ConvDecoder(5, SPEC, width=0), r"width must be an integer of at least 8, got 0"),
        (lambda: MLPDecoder(5, SPEC, (8, 0)), r"hidden must be an integer of at least 1, got 0"),
        (lambda: MLPDecoder(5, SPEC, 8), r"hidden must be a sequence of widths, got 8"),
        (lambda: decoder_options(dim=30, heads=3), r"decoder_dim must be a multiple of 4 and of decoder_heads \(3\)"),
        (lambda: decoder_options(dim=32, heads=3), r"decoder_dim must be .*decoder_heads \(3\), got 32"),
        (lambda: decoder_options(depth=0), r"decoder_depth must be an integer of at least 1, got 0"),
        (lambda: decoder_options(width=9), r"decoder_width must be a multiple of 8, got 9"),
        (lambda: decoder_options(hidden=["a"]), r"decoder_hidden must be an integer of at least 1, got 'a'"),
    ],
)
def test_a_bad_option_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Patches of masked images


def token_decoder(**options):
    torch.manual_seed(0)
    backbone = build_backbone("vit_small_patch16_224", SPEC, options={**SMALL, **options}).eval()
    grid = patch_grid(backbone, SPEC)
    decoder = build_patch_decoder(backbone, SPEC, grid, dim=8, depth=1, heads=2)
    assert isinstance(decoder, TokenDecoder)
    keep = random_keep(sample_key(0, 0, torch.arange(3)), "mask", grid.tokens, 6)
    return decoder, encode_masked(backbone, noise(3, 2, 16, 24), keep, grid), keep, grid


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_tokens_go_to_their_places(options):
    """Blocks taken out, a patch's prediction is its own token's, or the mask token's, plus its position."""
    decoder, encoded, keep, grid = token_decoder(**options)
    assert decoder(encoded, keep).shape == (3, grid.tokens, grid.values)
    decoder.blocks = torch.nn.Identity()
    pred = decoder(encoded, keep)
    visible = encoded.tokens[:, decoder.prefix :]
    for row in range(3):
        for place in range(grid.tokens):
            found = (keep[row] == place).nonzero()
            token = decoder.embed(visible[row, found[0, 0]]) if len(found) else decoder.mask_token[0, 0]
            expected = decoder.predict(decoder.norm(token + decoder.positions[0, place]))
            torch.testing.assert_close(pred[row, place], expected)


def test_the_order_of_tokens_does_not_matter():
    decoder, encoded, keep, _ = token_decoder()
    order = [3, 1, 5, 0, 2, 4]
    tokens = torch.cat([encoded.tokens[:, :1], encoded.tokens[:, 1:][:, order]], 1)
    shuffled = decoder(Encoded(encoded.pooled, tokens), keep[:, order])
    torch.testing.assert_close(shuffled, decoder(encoded, keep))
    assert not torch.allclose(decoder(encoded, keep[:, order]), shuffled)


def test_a_condition_is_added_to_every_token():
    decoder, encoded, keep, _ = token_decoder()
    condition = noise(3, decoder.dim)
    seen = []
    decoder.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(encoded, keep)
    decoder(encoded, keep, condition)
    torch.testing.assert_close(seen[1], seen[0] + condition[:, None])


def test_under_autocast_blocks_add_to_a_wide_sum():
    decoder, encoded, keep, _ = token_decoder()
    seen = []
    decoder.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = decoder(encoded, keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(encoded, keep)
    assert seen == [torch.float32, torch.float32]
    torch.testing.assert_close(mixed.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "kind", "network"),
    [("convnet", None, ConvDecoder), ("mlp", None, MLPDecoder), ("convnet", "mlp", MLPDecoder)],
)
def test_other_networks_are_decoded_from_their_features(name, kind, network):
    backbone = build_backbone(name, SPEC).eval()
    grid = patch_grid(backbone, SPEC, 4)
    decoder = build_patch_decoder(backbone, SPEC, grid, kind=kind, width=8, hidden=(7,))
    assert isinstance(decoder, PooledDecoder)
    assert isinstance(decoder.network, network)
    pooled, keep = noise(3, decoder.dim), torch.zeros(3, 1, dtype=torch.int64)
    pred = decoder(Encoded(pooled, None), keep)
    assert torch.equal(grid.unpatchify(pred), decoder.network(pooled))
    condition = noise(3, decoder.dim, seed=1)
    torch.testing.assert_close(
        decoder(Encoded(pooled, None), keep, condition), decoder(Encoded(pooled + condition, None), keep)
    )


def test_a_decoder_that_is_larger_than_its_encoder_is_told_once(caplog):
    vit = build_backbone("vit_tiny_patch16_224", SPEC, options=SMALL)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        build_patch_decoder(vit, SPEC, patch_grid(vit, SPEC), dim=8, depth=1, heads=2)
        assert not caplog.messages
        for _ in range(2):
            decoder = build_patch_decoder(vit, SPEC, patch_grid(vit, SPEC), dim=32, depth=3, heads=2)
    larger, smaller = (f"{sum(p.numel() for p in part.parameters()):,}" for part in (decoder, vit))
    assert caplog.messages == [caplog.messages[0]]
    assert f"decoder has {larger} parameters, the encoder {smaller}" in caplog.messages[0]


def test_the_small_layer_has_a_decoder_smaller_than_its_encoder():
    arguments = yaml.safe_load(configs.find("method/mae_small").read_text())["model"]["init_args"]
    method = MAE(**{**arguments, "views": None}, spec=ImageSpec(32, 3))
    method.configure_model()
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (method.backbone, method.decoder))
    assert decoder < encoder / 5
