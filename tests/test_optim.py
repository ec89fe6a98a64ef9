"""Parameter groups, optimizers by name and the learning rate's course."""

import copy
import math
from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn

from lit_ssl.networks import MLPHead
from lit_ssl.optim import build_optimizer, parameter_groups, scaled_lr, warmup_cosine


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm([4, 2, 2]))
        self.head = MLPHead(4, 8, 2)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.reg_token = nn.Parameter(torch.zeros(1, 2, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.text = nn.ModuleDict({"position_embedding": nn.Embedding(7, 4), "embedding": nn.Embedding(9, 4)})
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def names_by_decay(module, groups):
    names = {id(p): n for n, p in module.named_parameters()}
    return {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in groups}


def test_which_parameters_decay():
    model = Toy()
    by_decay = names_by_decay(model, parameter_groups(model, 0.1))
    assert by_decay[0.1] == {"backbone.0.weight", "head.0.weight", "head.3.weight", "text.embedding.weight"}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert by_decay[0.0] == trainable - by_decay[0.1]
    assert not any("frozen" in n for n in trainable)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=3), min_size=1, max_size=8),
    names=st.lists(st.sampled_from(["a.weight", "b.bias", "pos_embed", "x.cls_token", "w"]), min_size=8, max_size=8),
    frozen=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_every_trainable_parameter_is_in_exactly_one_group(shapes, names, frozen):
    named = [
        (n, nn.Parameter(torch.zeros(s), requires_grad=not f)) for s, n, f in zip(shapes, names, frozen, strict=False)
    ]
    named += named[:1]  # a shared parameter comes twice
    trainable = [id(p) for _, p in named if p.requires_grad]
    if not trainable:
        with pytest.raises(ValueError, match="no parameter is trainable"):
            parameter_groups(named, 0.1)
        return
    grouped = [id(p) for g in parameter_groups(named, 0.1) for p in g["params"]]
    assert sorted(grouped) == sorted(set(trainable))


def test_tied_weights_appear_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert sum(len(g["params"]) for g in parameter_groups(model, 0.1)) == 3


def test_a_models_own_no_weight_decay_is_respected():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 3))
            self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

        def no_weight_decay(self):
            return {"table", "blocks.1.*"}

    model = nn.ModuleDict({"backbone": Own()})
    by_decay = names_by_decay(model, parameter_groups(model, 0.1))
    assert by_decay[0.1] == {"backbone.blocks.0.weight"}

    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, depths=(1, 1), embed_dim=6, num_heads=(1, 2))
    by_decay = names_by_decay(swin, parameter_groups(swin, 0.1))
    assert any("relative_position_bias_table" in n for n in by_decay[0.0])
    assert not any("relative_position_bias_table" in n for n in by_decay[0.1])


def test_a_head_that_was_added_is_optimised():
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4)})
    model["projector"] = MLPHead(4, 8, 2)
    optimizer = build_optimizer(model, name="adamw", lr=1e-2, weight_decay=0.1)
    before = copy.deepcopy(model["projector"].state_dict())
    model["projector"](model["backbone"](torch.randn(8, 4))).square().sum().backward()
    optimizer.step()
    for name, parameter in model["projector"].named_parameters():
        assert not torch.equal(before[name], parameter), name


@pytest.mark.parametrize("name", ["adamw", "AdamW", "adam", "sgd", "lars", "lamb", "lion", "lookahead_adamw", "muon"])
def test_optimizers_by_name_take_a_step(name):
    model = Toy()
    optimizer = build_optimizer(model, name=name, lr=1e-2, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        optimizer.step()
    for n, p in model.named_parameters():
        assert torch.equal(before[n], p) == (not p.requires_grad), n


def test_defaults_of_the_named_recipes():
    sgd = build_optimizer(Toy(), name="sgd", lr=0.1)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, False)
    assert type(build_optimizer(Toy(), name="adamw", lr=0.1)) is torch.optim.AdamW
    options = {"betas": [0.9, 0.95], "eps": 1e-6}
    adamw = build_optimizer(Toy(), name="adamw", lr=0.1, weight_decay=0.05, options=options)
    assert [g["betas"] for g in adamw.param_groups] == [(0.9, 0.95)] * 2
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.05, 0.0]
    assert options == {"betas": [0.9, 0.95], "eps": 1e-6}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_fused_kernel_of_a_cpu_takes_the_same_steps(name):
    fused, loop = Toy().double(), Toy().double()
    loop.load_state_dict(fused.state_dict())
    pair = [build_optimizer(fused, name=name, lr=1e-2, weight_decay=0.1)]
    pair += [build_optimizer(loop, name=name, lr=1e-2, weight_decay=0.1, options={"fused": False})]
    assert [optimizer.defaults["fused"] for optimizer in pair] == [True, False]
    for _ in range(3):
        for p, q in zip(fused.parameters(), loop.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for p, q in zip(fused.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_gradients_of_a_fused_optimizer_can_be_clipped_in_mixed_precision(options):
    optimizer = build_optimizer(Toy(), name="adamw", lr=0.1, options=options)
    assert optimizer.defaults["fused"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    precision = MixedPrecision("bf16-mixed", "cpu")
    precision.connect(nn.Module(), [optimizer], [])
    precision.clip_gradients(optimizer, 0.5, GradClipAlgorithmType.NORM)
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.5))


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
@pytest.mark.parametrize("saved", [torch.contiguous_format, torch.channels_last])
def test_a_fused_kernel_goes_on_from_weights_in_another_memory_format(name, saved):
    others = {torch.contiguous_format: torch.channels_last, torch.channels_last: torch.contiguous_format}
    weight = torch.randn(5, 3, 3, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    gradients = torch.randn(9, *weight.shape, dtype=torch.float64)  # Lookahead acts on every sixth

    def steps(memory_format, state, gradients):
        parameter = nn.Parameter(weight.clone(memory_format=memory_format))
        optimizer = build_optimizer([("weight", parameter)], name=name, lr=1e-2)
        assert optimizer.defaults["fused"]
        if state is not None:
            parameter.data.copy_(state[0])
            optimizer.load_state_dict(copy.deepcopy(state[1]))
        for gradient in gradients:
            parameter.grad = gradient.contiguous(memory_format=memory_format)
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    whole, _ = steps(saved, None, gradients)
    resumed, _ = steps(others[saved], steps(saved, None, gradients[:7]), gradients[7:])
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-12)


def test_the_kernel_is_that_of_the_run_and_not_of_the_state_it_loads():
    model = Toy()
    fused, loop = (build_optimizer(model, name="adamw", lr=0.1, options=o) for o in ({}, {"foreach": False}))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer, other in ((fused, loop), (loop, fused)):
        other.step()
        optimizer.load_state_dict(other.state_dict())
        assert {group["fused"] for group in optimizer.param_groups} == {optimizer.defaults["fused"]}
        optimizer.step()


@pytest.mark.parametrize("options", [{"foreach": True}, {"capturable": True}, {"differentiable": True}])
def test_what_excludes_the_fused_kernel_turns_it_off(options):
    assert not build_optimizer(Toy(), name="adamw", lr=0.1, options=options).defaults["fused"]


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_lars_adapts_weights_but_not_biases_and_norms(weight_decay):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    optimizer = build_optimizer(model, name="lars", lr=0.5, weight_decay=weight_decay)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        w, g = before[name], p.grad
        if name == "0.weight":
            trust = 1e-3 * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
            expected = w - 0.5 * trust * (g + weight_decay * w)
        else:
            expected = w - 0.5 * g
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamm"}, r"'adamm' is unknown; did you mean .*adam"),
        ({"name": "qqqq"}, "is unknown"),
        ({"options": {"beta": 1}}, "does not work with optimizer_options {'beta': 1}"),
        ({"options": {"betas": [2.0, 0.9]}}, "optimizer_options"),
        ({"options": {"lr": 1}}, "must not hold 'lr'"),
        ({"lr": 0}, "lr must be a finite number above 0"),
        ({"lr": math.nan}, "lr must be"),
        ({"weight_decay": -1e-3}, "weight_decay must be a finite number of at least 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(Toy(), **{"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, **arguments})


def test_learning_rate_scales_with_the_global_batch():
    assert scaled_lr(0.3, 512) == pytest.approx(0.6)
    assert scaled_lr(0.3, 1024, "sqrt") == pytest.approx(0.6)
    assert scaled_lr(0.3, 1024, "none") == 0.3
    assert scaled_lr(1.5e-4, 4096, base=256) == pytest.approx(2.4e-3)
    for arguments in ({"batch": 0}, {"batch": 8, "rule": "log"}, {"batch": 8, "base": 0}, {"batch": 8.5}):
        with pytest.raises(ValueError, match=r"must be"):
            scaled_lr(0.1, **arguments)


def course(steps, **arguments):
    """The learning rate that each of the first optimizer steps runs at."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_course_of_the_learning_rate():
    rates = course(12, warmup_steps=4, total_steps=10, final=0.1)
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    for s in range(4, 10):
        assert rates[s] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi * (s - 4) / 6)) / 2))
    assert rates[10:] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("total", [None, -1, math.inf])
def test_a_run_without_an_end_stays_at_the_peak(total):
    assert course(50, warmup_steps=2, total_steps=total) == pytest.approx([1.0] + [2.0] * 49)
    assert course(9, warmup_steps=2, total_steps=9, schedule="constant") == pytest.approx([1.0] + [2.0] * 8)


@settings(max_examples=60, deadline=None)
@given(warmup=st.integers(0, 30), total=st.integers(1, 60), final=st.floats(0, 1))
def test_schedule_bounds(warmup, total, final):
    warmup = min(warmup, total)
    rates = course(total + 3, warmup_steps=warmup, total_steps=total, final=final)
    assert 0 < rates[0] <= 2.0
    assert rates[0] == pytest.approx(2.0 / max(warmup, 1))
    assert max(rates[:total]) == pytest.approx(2.0)
    assert all(a <= b for a, b in pairwise(rates[:warmup]))
    fall = rates[max(warmup - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in pairwise(fall))
    assert all(r >= 2.0 * final - 1e-12 for r in fall)
    assert rates[total:] == pytest.approx([2.0 * final] * 3)
    if total - warmup >= 20:
        assert rates[total - 1] <= 2.0 * (final + (1 - final) * 0.01) + 1e-12


def test_a_resumed_schedule_goes_on():
    def start():
        model = nn.Linear(3, 3)
        optimizer = build_optimizer(model, name="sgd", lr=0.5, weight_decay=0.1)
        return optimizer, warmup_cosine(optimizer, warmup_steps=3, total_steps=20)

    def advance(optimizer, scheduler, steps):
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[1]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    whole = advance(*start(), 20)
    first, state = start(), None
    rates = advance(*first, 7)
    state = copy.deepcopy((first[0].state_dict(), first[1].state_dict()))
    second = start()
    second[0].load_state_dict(state[0])
    second[1].load_state_dict(state[1])
    assert rates + advance(*second, 13) == whole


def test_schedule_mistakes_are_named():
    with pytest.warns(UserWarning, match="longer than the run"):
        course(1, warmup_steps=5, total_steps=4)
    for arguments, message in (
        ({"warmup_steps": -1}, "warmup_steps must be"),
        ({"warmup_steps": 0.5}, "warmup_steps must be"),
        ({"total_steps": 0}, "total_steps must be"),
        ({"final": 1.5}, "final must be"),
        ({"schedule": "step"}, "schedule must be"),
    ):
        with pytest.raises(ValueError, match=message):
            course(1, **{"warmup_steps": 1, "total_steps": 10, **arguments})


@pytest.mark.parametrize("name", timm.optim.list_optimizers())
@pytest.mark.filterwarnings("ignore")
def test_every_optimizer_of_timm_trains_or_is_refused_by_name(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    x = torch.randn(8, 1, 4, 4)
    try:
        optimizer = build_optimizer(network, name=name, lr=1e-2, weight_decay=0.01)
    except ValueError as error:
        if repr(name) not in str(error):
            raise
        return
    before = [p.detach().clone() for p in network.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    after = list(network.parameters())
    assert all(bool(p.isfinite().all()) for p in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_weights_too_short_for_small_updates_are_told(dtype, share, caplog):
    weight = nn.Parameter(torch.ones(4, dtype=dtype))
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        optimizer = build_optimizer([("weight", weight)], name="sgd", lr=1.0, options={"momentum": 0})
    assert f"below 1/{share} of a weight is lost" in caplog.text
    weight.grad = torch.full_like(weight, 0.99 / share)  # upwards, where numbers are twice as far apart as below 1
    weight.grad.neg_()
    optimizer.step()
    assert (weight == 1).all()
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        build_optimizer([("weight", nn.Parameter(torch.ones(4)))], name="sgd", lr=1.0)
    assert not caplog.text
