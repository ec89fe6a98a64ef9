"""Backbones by name and of one's own, at the sizes and channel counts that users have."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from lit_ssl.networks import build_backbone
from lit_ssl.networks.small import ConvNet
from lit_ssl.spec import ImageSpec


def images(spec, rows=3):
    return torch.randn(rows, spec.channels, spec.height, spec.width)


def check(module, spec):
    out = module.eval()(images(spec))
    assert isinstance(module.num_features, int)
    assert out.shape == (3, module.num_features)
    return out


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_any_channel_count_and_shape(name, channels):
    spec = ImageSpec((32, 48), channels)
    check(build_backbone(name, spec), spec)


def test_num_features_is_what_comes_out():
    spec = ImageSpec(64)
    backbone = build_backbone("mobilenetv3_small_050", spec)  # timm's own num_features says 288
    assert backbone.num_features == check(backbone, spec).shape[1] == 1024


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "seresnext26t_32x4d", "resnetv2_18", "resnetv2_18d"])
def test_small_images_get_the_small_stem(name):
    backbone = build_backbone(name, ImageSpec(32, 1))
    stem = backbone.conv1 if hasattr(backbone, "conv1") else backbone.stem.conv
    assert (stem.in_channels, stem.kernel_size, stem.stride, stem.padding) == (1, (3, 3), (1, 1), (1, 1))
    assert stem.bias is None
    assert not any(isinstance(m, nn.MaxPool2d) for m in backbone.modules())
    assert backbone.forward_features(torch.zeros(1, 1, 32, 32)).shape[2:] == (4, 4)


def test_large_images_keep_their_stem_unless_told_otherwise():
    assert build_backbone("resnet10t", ImageSpec(64)).maxpool.__class__ is nn.Identity
    assert build_backbone("resnet10t", ImageSpec(65)).maxpool.__class__ is not nn.Identity
    assert build_backbone("resnet10t", ImageSpec((32, 80))).maxpool.__class__ is not nn.Identity
    forced = build_backbone("resnet18", ImageSpec(96), options={"small_stem": True})
    assert forced.conv1.stride == (1, 1)
    kept = build_backbone("resnet18", ImageSpec(32), options={"small_stem": False})
    assert kept.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("size", "patch"), [(28, 4), (32, 4), (64, 8), ((32, 48), 4), ((28, 56), 4), (96, 16), (35, 5)]
)
def test_vits_get_a_patch_that_leaves_enough_tokens(size, patch):
    spec = ImageSpec(size, 1)
    backbone = build_backbone("vit_tiny_patch16_224", spec, options={"depth": 1})
    assert backbone.patch_embed.patch_size == (patch, patch)
    assert backbone.patch_embed.grid_size == (spec.height // patch, spec.width // patch)
    check(backbone, spec)


def test_a_patch_size_of_ones_own_wins():
    backbone = build_backbone("vit_tiny_patch16_224", ImageSpec(32), options={"depth": 1, "patch_size": 8})
    assert backbone.patch_embed.grid_size == (4, 4)


def test_pixels_are_never_dropped_in_silence():
    with pytest.raises(ValueError, match="patches of 16x16 pixels, which do not divide 31x31"):
        build_backbone("vit_tiny_patch16_224", ImageSpec(31), options={"depth": 1})
    with pytest.raises(ValueError, match="patches of 16x16 pixels, which do not divide 100x96"):
        build_backbone("vit_tiny_patch16_224", ImageSpec((100, 96)), options={"depth": 1})
    spec = ImageSpec((100, 96))
    options = {"depth": 1, "dynamic_img_size": True, "dynamic_img_pad": True}
    check(build_backbone("vit_tiny_patch16_224", spec, options=options), spec)


def test_features_come_from_every_pixel_of_the_small_nets():
    spec = ImageSpec(28, 1)
    for options in ({}, {"depth": 1}, {"stem_stride": 2}, {"pool": "avgmax", "grid": 2}, {"pool": "max", "stages": 2}):
        backbone = build_backbone("convnet", spec, options=options).eval()
        x = images(spec).requires_grad_()
        backbone(x).square().sum().backward()
        assert (x.grad != 0).float().mean() > (0.3 if "max" in options.get("pool", "") else 0.95), options


def test_options_of_the_small_nets():
    assert build_backbone("convnet", ImageSpec(28, 1)).num_features == 128
    assert build_backbone("convnet", ImageSpec(28), options={"width": 16, "stages": 2}).num_features == 32
    wide = build_backbone("convnet", ImageSpec(28), options={"width": 16, "pool": "avgmax", "grid": 2})
    assert wide.num_features == 16 * 4 * 4 * 2
    mlp = build_backbone("mlp", ImageSpec(28, 1))
    assert [m.weight.shape for m in mlp.modules() if isinstance(m, nn.Linear)] == [(256, 784), (64, 256)]
    assert (mlp(images(ImageSpec(28, 1), 64)) < 0).any()  # the code is linear
    deeper = build_backbone("mlp", ImageSpec(8), options={"hidden": [32, 16, 8], "norm": True})
    assert deeper.num_features == 8
    assert sum(isinstance(m, nn.BatchNorm1d) for m in deeper.modules()) == 2


class Counting(nn.Module):
    """A module of one's own that shows in which mode it was run."""

    def __init__(self, shape=(2, 6), **attributes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.BatchNorm1d(6))
        self.body[2].eval()  # a frozen part stays so
        self.calls = []
        self.shape = shape
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled()))
        return self.body(x).new_zeros(self.shape) if self.shape != (2, 6) else self.body(x)


def test_a_module_of_ones_own_is_returned_itself():
    own = Counting()
    backbone = build_backbone(own, ImageSpec(8, 2))
    assert backbone is own
    assert own.num_features == 6
    assert own.calls == [(False, False)]
    assert own.training
    assert not own.body[2].training
    assert own.body[2].num_batches_tracked == 0
    assert set(own.state_dict()) == {f"body.1.{n}" for n in ("weight", "bias")} | {
        f"body.2.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert build_backbone(Counting(num_features=6), ImageSpec(8, 2)).num_features == 6


def test_a_module_in_another_dtype():
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    assert build_backbone(own, ImageSpec(2)).num_features == 5


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (12,), (4, 3)])
def test_an_output_that_is_not_pooled_is_named(shape):
    with pytest.raises(
        ValueError, match=r"Counting.*must map .* to pooled features \(B, D\).*shape \(" + str(shape[0])
    ):
        build_backbone(Counting(shape), ImageSpec(8, 2))


def test_wrong_modules_are_named():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match="gave a tuple"):
        build_backbone(Two(), ImageSpec(8))
    with pytest.raises(ValueError, match=r"num_features=7 but gives \(B, 6\)"):
        build_backbone(Counting(num_features=7), ImageSpec(8, 2))
    with pytest.raises(ValueError, match="cannot take images of 3 channels and 9x8 pixels"):
        build_backbone(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), ImageSpec((9, 8)))
    with pytest.raises(ValueError, match="needs a backbone given by name"):
        build_backbone(Counting(), ImageSpec(8, 2), options={"width": 2})
    with pytest.raises(TypeError, match=r"must be a name or an nn\.Module"):
        build_backbone(18, ImageSpec(8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"'resnet81' is unknown; did you mean .*resnet18"),
        ("connvet", {}, "convnet"),
        ("qqqqqqqq", {}, r"timm.list_models\(\)"),
        ("resnet18.nonsense", {}, r"no weights tagged 'nonsense'; there are .*a1_in1k"),
        ("resnet18", {"widht": 3}, "backbone_options {'widht': 3}.*widht"),
        ("convnet", {"widht": 3}, "does not take backbone_options {'widht': 3}"),
        ("convnet", {"width": 31}, "width must be even"),
        ("convnet", {"width": 0}, "width must be an integer"),
        ("convnet", {"depth": -1}, "depth must be an integer of at least 0, got -1"),
        ("convnet", {"pool": "mean"}, "pool must be"),
        ("convnet", {"stem_stride": 4}, "stem_stride must be"),
        ("mlp", {"hidden": []}, "hidden must be"),
        ("mlp", {"hidden": [8, 0]}, "hidden must be"),
        ("resnet18", {"in_chans": 3}, "must not hold 'in_chans'"),
        ("resnet18", {"small_stem": "yes"}, "small_stem must be"),
        ("convnext_atto", {"small_stem": True}, "small_stem=True works for timm's ResNets, not for 'convnext_atto'"),
        ("resnet18", {"global_pool": ""}, r"must map .*gave shape \(2, 512, 4, 4\)"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, ImageSpec(32), options=options)


def test_options_are_not_changed():
    options = {"small_stem": False}
    build_backbone("resnet10t", ImageSpec(32), options=options)
    assert options == {"small_stem": False}


def test_weights_that_cannot_be_had(monkeypatch):
    with pytest.raises(ValueError, match="no weights tagged 'nope'"):
        build_backbone("resnet10t.nope", ImageSpec(32), pretrained=True)
    with pytest.raises(ValueError, match="no pretrained weights for 'vit_small_patch16_36x1_224'"):
        build_backbone("vit_small_patch16_36x1_224", ImageSpec(32), pretrained=True)
    with pytest.raises(ValueError, match="'convnet' has no pretrained weights"):
        build_backbone("convnet", ImageSpec(32), pretrained=True)

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(RuntimeError, match=r"could not be loaded .*no route to host.*needs the network"):
        build_backbone("resnet18", ImageSpec(32), pretrained=True)


def test_pretrained_weights_keep_their_stem(monkeypatch):
    source = timm.create_model("resnet10t", in_chans=3)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: source.state_dict())
    backbone = build_backbone("resnet10t", ImageSpec(32), pretrained=True)
    assert not isinstance(backbone.maxpool, nn.Identity)
    assert torch.equal(backbone.conv1[0].weight, source.conv1[0].weight)
    small = build_backbone("resnet10t", ImageSpec(32), pretrained=True, options={"small_stem": True})
    assert small.conv1.kernel_size == (3, 3)
    assert torch.equal(small.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def test_a_pretrained_vit_that_sees_few_tokens_warns(monkeypatch):
    source = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: source.state_dict())
    with pytest.warns(UserWarning, match="leaves 4 tokens of an image of 32x32"):
        backbone = build_backbone("vit_tiny_patch16_224", ImageSpec(32), pretrained=True, options={"depth": 1})
    assert torch.equal(backbone.patch_embed.proj.weight, source.patch_embed.proj.weight)
    options = {"depth": 1, "patch_size": 4}
    assert build_backbone("vit_tiny_patch16_224", ImageSpec(32), pretrained=True, options=options).num_features == 192


def test_gradient_checkpointing_changes_memory_not_gradients():
    spec = ImageSpec(16)
    options = {"depth": 2, "embed_dim": 24, "num_heads": 3}
    x, grads = images(spec), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = build_backbone("vit_tiny_patch16_224", spec, options=options, gradient_checkpointing=checkpointing)
        assert backbone.grad_checkpointing is checkpointing
        backbone(x).square().sum().backward()
        grads.append([p.grad for p in backbone.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backbone", ["convnet", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))])
def test_gradient_checkpointing_is_refused_where_it_would_do_nothing(backbone):
    with pytest.raises(ValueError, match="gradient_checkpointing=True is not supported"):
        build_backbone(backbone, ImageSpec(32), gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_small_nets_can_be_copied_and_pickled(name):
    backbone = build_backbone(name, ImageSpec(28, 1)).eval()
    x = images(ImageSpec(28, 1))
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin(x), backbone(x))


@pytest.mark.parametrize("size", [(28, 28), (32, 20), (9, 17), (5, 5)])
@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_small_net_pools_the_cells_of_its_map(size, grid, memory_format):
    net = ConvNet(1, width=4, stages=1, pool="avgmax", grid=grid).double().eval().to(memory_format=memory_format)
    x = torch.rand(3, 1, *size, generator=torch.manual_seed(0), dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format)
    maps = net.stages(net.stem(x))
    pools = torch.nn.functional.adaptive_avg_pool2d, torch.nn.functional.adaptive_max_pool2d
    want = torch.cat([pool(maps, grid) for pool in pools], 1).flatten(1)
    torch.testing.assert_close(net(x), want, atol=1e-12, rtol=0)
    assert net(x).shape == (3, net.num_features)
