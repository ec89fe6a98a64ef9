import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ssl.losses import clip_loss, siglip_loss


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def reference_direction(query, candidates, ids, scale, beta):
    """One softmax, term by term, without a logarithm's shelter."""
    rows = []
    for i in range(len(query)):
        s = scale * (candidates @ query[i])
        negatives = [s[j] for j in range(len(query)) if ids[j] != ids[i]]
        if not negatives:
            rows.append(s[i] * 0)
            continue
        negatives = torch.stack(negatives)
        weight = torch.exp(beta * negatives) / torch.exp(beta * negatives).mean()
        rows.append(-torch.log(torch.exp(s[i]) / (torch.exp(s[i]) + (weight * torch.exp(negatives)).sum())))
    return torch.stack(rows).mean()


def reference_clip(image, text, *, logit_scale, duplicates=None, beta=0.0):
    image, text = unit(image), unit(text)
    ids = list(range(len(image))) if duplicates is None else duplicates.tolist()
    a, b = (reference_direction(x, y, ids, logit_scale, beta) for x, y in ((image, text), (text, image)))
    return (a + b) / 2


def reference_siglip(image, text, *, logit_scale, logit_bias, duplicates=None):
    image, text, total = unit(image), unit(text), 0
    for i in range(len(image)):
        for j in range(len(text)):
            if i != j and duplicates is not None and duplicates[i] == duplicates[j]:
                continue
            sign = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(-sign * (logit_scale * image[i] @ text[j] + logit_bias))))
    return total / len(image)


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, requires_grad=True)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def agree(ours, theirs, inputs, rtol=1e-8):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    pairs = (torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-10 if rtol > 1e-10 else 1e-12)


captions = st.lists(st.integers(-2, 3), min_size=2, max_size=7)


@settings(deadline=None, max_examples=40)
@given(captions, st.booleans(), st.sampled_from([1.0, 1 / 0.07]), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 100))
def test_clip_is_the_formula(ids, masked, scale, beta, seed):
    image, text, s = rows(len(ids), 5, seed=seed), rows(len(ids), 5, seed=seed + 1000), scalar(scale)
    options = {"logit_scale": s, "beta": beta, "duplicates": torch.tensor(ids) if masked else None}
    agree(clip_loss(image, text, **options), reference_clip(image, text, **options), (image, text, s))


@settings(deadline=None, max_examples=40)
@given(captions, st.booleans(), st.sampled_from([1.0, 10.0]), st.sampled_from([-10.0, 0.0, 2.0]), st.integers(0, 100))
def test_siglip_is_the_formula(ids, masked, scale, bias, seed):
    image, text = rows(len(ids), 5, seed=seed), rows(len(ids), 5, seed=seed + 1000)
    s, b = scalar(scale), scalar(bias)
    options = {"logit_scale": s, "logit_bias": b, "duplicates": torch.tensor(ids) if masked else None}
    agree(siglip_loss(image, text, **options), reference_siglip(image, text, **options), (image, text, s, b))


def test_without_options_clip_is_the_papers_two_cross_entropies():
    image, text, target = rows(6, 8), rows(6, 8, seed=1), torch.arange(6)
    logits = 14.0 * unit(image) @ unit(text).T
    expected = sum(torch.nn.functional.cross_entropy(x, target) for x in (logits, logits.T)) / 2
    torch.testing.assert_close(clip_loss(image, text, logit_scale=14.0), expected)


def test_the_scale_multiplies():
    image = rows(6, 8)
    aligned = [clip_loss(image, image + 0.1, logit_scale=scale).item() for scale in (1.0, 10.0, 100.0)]
    assert aligned[0] > aligned[1] > aligned[2]


def test_equal_captions_do_not_repel():
    """Two images of one caption: with the mask neither is pushed from the other's text."""
    image, text = rows(2, 4), rows(1, 4, seed=1).detach().repeat(2, 1)
    ids = torch.tensor([7, 7])
    assert clip_loss(image, text, logit_scale=10.0, duplicates=ids).item() == 0
    assert clip_loss(image, text, logit_scale=10.0).item() >= math.log(2)
    repelled, free = (siglip_loss(image, text, logit_scale=1.0, logit_bias=0.0, duplicates=d) for d in (None, ids))
    torch.testing.assert_close(free, -torch.nn.functional.logsigmoid(unit(image) @ unit(text[0])).mean())
    assert repelled > free + 0.1


LOSSES = {
    "clip": (clip_loss, {"logit_scale": 5.0, "beta": 1.0}),
    "siglip": (siglip_loss, {"logit_scale": 5.0, "logit_bias": -2.0}),
}


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_change_nothing(name, chunk_size):
    (loss, options), image, text = LOSSES[name], rows(8, 5), rows(8, 5, seed=1)
    learned = {name: scalar(options[name]) for name in ("logit_scale", "logit_bias") if name in options}
    options = {**options, **learned, "duplicates": torch.tensor([0, 1, 2, 1, 4, 5, 1, 7])}
    inputs = (image, text, *learned.values())
    agree(loss(image, text, chunk_size=chunk_size, **options), loss(image, text, **options), inputs, rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_inputs_are_computed_in_float32(name):
    loss, options = LOSSES[name]
    image, text = rows(32, 16, dtype=torch.float32), rows(32, 16, seed=1, dtype=torch.float32)
    half = loss(image.bfloat16(), text.bfloat16(), **options)
    exact = loss(image.bfloat16().double(), text.bfloat16().double(), **options)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(image, text, **options)
    assert mixed.item() == pytest.approx(loss(image, text, **options).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [0, 1, 4])
def test_few_and_identical_rows_stay_finite(name, n):
    loss, options = LOSSES[name]
    image, s = torch.zeros(n, 3, requires_grad=True), torch.tensor(100.0, requires_grad=True)
    options = {**options, "logit_scale": s, "duplicates": torch.zeros(n, dtype=torch.int64)}
    value = loss(image, torch.ones(n, 3), **options)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (image, s)))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_read_back_from_the_device(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device used here
    loss, options = LOSSES[name]
    ids = torch.zeros(6, dtype=torch.int64, device="meta")  # a device whose values cannot be read
    image, scale = torch.zeros(6, 4, device="meta"), torch.zeros((), device="meta")
    value = loss(image, image, **{**options, "logit_scale": scale, "duplicates": ids, "chunk_size": 2})
    assert (value.device.type, value.shape) == ("meta", ())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("logit_scale", 0.0, "logit_scale must be .*above 0, got 0.0"),
        ("beta", -1.0, "beta must be .*got -1.0"),
        ("chunk_size", 0, "chunk_size must be .*got 0"),
        ("duplicates", torch.zeros(3, dtype=torch.int64), r"duplicates must be int64 of shape \(2,\), got .*\(3,\)"),
        ("duplicates", torch.zeros(2), "duplicates must be int64 .*got torch.float32"),
    ],
)
def test_a_bad_option_is_named(option, value, words):
    with pytest.raises(ValueError, match=words):
        clip_loss(rows(2, 3), rows(2, 3), **{"logit_scale": 1.0, option: value})
    if option != "beta":
        with pytest.raises(ValueError, match=words):
            siglip_loss(rows(2, 3), rows(2, 3), **{"logit_scale": 1.0, "logit_bias": 0.0, option: value})


def test_bad_shapes_are_named():
    for loss in (clip_loss, lambda *a, **k: siglip_loss(*a, logit_bias=0.0, **k)):
        with pytest.raises(ValueError, match=r"image and text must both be \(B, D\).*\(2, 3\) and \(3, 3\)"):
            loss(rows(2, 3), rows(3, 3), logit_scale=1.0)
