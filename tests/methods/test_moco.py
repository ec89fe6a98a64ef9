import math

import pytest
import torch

from lit_ssl import MoCo
from lit_ssl.losses import info_nce
from lit_ssl.networks.follower import Follower
from lit_ssl.views import with_keys, with_views

V3 = {"queue_size": 0, "predictor": True, "symmetric": True, "projector_layers": 3}


def moco(spec, tiny, **kwargs):
    method = MoCo(spec=spec, **{"queue_size": 40, "projector_hidden": 16, "projector_dim": 8, **kwargs}, **tiny)
    method.configure_model()
    return method


def batch_for(method, images):
    batch = {"image": images, "index": torch.arange(len(images)), "label": torch.full((len(images),), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_keys_join_the_queue_after_the_loss(spec, tiny, images, make_trainer):
    """With the current keys enqueued first, each positive is among its negatives and no loss goes below log 2."""
    method = moco(spec, tiny, temperature=0.01)
    batch = batch_for(method, images[:16])
    before = method.queue.clone()
    with torch.no_grad():
        keys = torch.nn.functional.normalize(
            method.key_projector(method.key_backbone(method.normalize(batch["views"][1])))
        )
    method.eval()
    batch["views"][0] = batch["views"][1]  # identical views: queries are their keys
    loss = method.loss(batch)["loss"]
    assert torch.equal(method.queue, before)
    assert loss < math.log(2)
    loss.backward()
    method.on_after_backward()
    assert torch.equal(method.queue[16:], before[16:])
    torch.testing.assert_close(method.queue[:16], keys)
    assert info_nce(method._keys[0], method._keys[0], queue=method.queue, temperature=0.01) >= math.log(2)


def test_keys_of_two_views_join_view_by_view(spec, tiny):
    method = moco(spec, tiny, queue_size=12, symmetric=True)
    keys = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    method._keys = [*keys]
    method.on_after_backward()
    torch.testing.assert_close(method.queue[:8], torch.nn.functional.normalize(keys.flatten(0, 1)))


def test_the_queue_is_a_ring_of_any_length(spec, tiny):
    method = moco(spec, tiny, queue_size=5)
    rows = torch.nn.functional.normalize(torch.randn(9, 8, generator=torch.Generator().manual_seed(0)))
    for part in (rows[:3], rows[3:6]):
        method._keys = [part]
        method.on_after_backward()
    torch.testing.assert_close(method.queue, rows[[5, 1, 2, 3, 4]])
    assert method.queue_position.item() == 1
    method._keys = [rows]  # more keys than places: the latest stay
    method.on_after_backward()
    assert {tuple(r) for r in method.queue.tolist()} == {tuple(r) for r in rows[4:].tolist()}


@pytest.mark.parametrize("options", [{}, V3])
def test_the_key_encoder_starts_as_a_copy_and_follows(spec, tiny, options, loader, make_trainer):
    method = MoCo(spec=spec, **{"queue_size": 40, "lr": 0.5, "momentum": 0.9, **options}, **tiny)
    method.configure_model()
    assert same(method.key_backbone, method.backbone)
    assert same(method.key_projector, method.projector)
    key = [p.clone() for p in method.key_backbone.parameters()]
    make_trainer(max_steps=1, max_epochs=-1).fit(method, loader)
    for old, new, query in zip(key, method.key_backbone.parameters(), method.backbone.parameters(), strict=True):
        torch.testing.assert_close(new, old * 0.9 + query * 0.1)
    assert not same(method.key_backbone, method.backbone)
    assert all(p.grad is None for p in method.key_backbone.parameters())


def test_momentum_rises_to_one_on_a_cosine(spec, tiny, loader, make_trainer, monkeypatch):
    """Behind the optimizer's k-th step it is that of share k / K, as main_moco.py of version 3 has it."""
    method = MoCo(spec=spec, momentum=0.5, momentum_schedule="cosine", queue_size=40, lr=0.5, **tiny)
    seen = []

    def follow(self, step, total, original=Follower.follow):
        key, query = next(iter(method.key_backbone.parameters())), next(iter(method.backbone.parameters()))
        before = key.detach().clone()
        original(self, step, total)
        seen.append(1 - ((key - before).norm() / (query - before).norm()).item())

    monkeypatch.setattr(Follower, "follow", follow)
    make_trainer(max_epochs=2).fit(method, loader)
    expected = [1 - 0.5 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 9)]
    assert seen == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("built_before", [False, True])
def test_under_bf16_true_the_key_encoder_follows_all_the_same(spec, tiny, loader, make_trainer, tmp_path, built_before):
    method = MoCo(spec=spec, queue_size=40, lr=0.1, **tiny)
    if built_before:
        method.configure_model()  # in float32
    trainer = make_trainer(max_epochs=3, precision="bf16-true")
    trainer.fit(method, loader)
    weight = method.key_backbone.state_dict()
    assert {value.dtype for value in weight.values() if value.is_floating_point()} == {torch.bfloat16}
    masters = method.follower.masters.view(torch.float32)
    first = torch.cat([p.detach().float().flatten() for p in method.untrained().backbone.parameters()])
    query = torch.cat([p.detach().float().flatten() for p in method.backbone.parameters()])
    learned = query != first.bfloat16().float()
    assert learned.float().mean() > 0.3
    assert (masters[: len(first)] != first.bfloat16().float())[learned].float().mean() > 0.9
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = MoCo(spec=spec, queue_size=40, lr=0.1, **tiny)
    resumed = make_trainer(max_epochs=4, precision="bf16-true")
    resumed.fit(again, loader, ckpt_path=tmp_path / "a.ckpt")
    assert not torch.equal(again.follower.masters, method.follower.masters)
    MoCo.load_from_checkpoint(tmp_path / "a.ckpt")  # in float32


def test_version_3_is_the_symmetric_loss_of_algorithm_1(spec, tiny, images):
    method = moco(spec, tiny, **V3).eval()
    batch = batch_for(method, images[:16])
    a, b = (method.normalize(v) for v in batch["views"])
    q1, q2 = (method.predictor(method.projector(method.backbone(x))) for x in (a, b))
    k1, k2 = (method.key_projector(method.key_backbone(x)) for x in (a, b))
    expected = (info_nce(q1, k2, temperature=0.2) + info_nce(q2, k1, temperature=0.2)) / 2
    torch.testing.assert_close(method.loss(batch)["loss"], expected)
    assert not hasattr(method, "queue")


def test_the_queue_is_in_the_checkpoint_and_kept_from_ddp(spec, tiny):
    method = moco(spec, tiny)
    assert {"queue", "queue_position"} <= set(method.state_dict())
    assert set(method._ddp_params_and_buffers_to_ignore) >= {"queue", "queue_position"}


@pytest.mark.parametrize(
    ("name", "value"), [("queue_size", -1), ("momentum", 1.5), ("momentum_schedule", "linear"), ("temperature", 0)]
)
def test_a_bad_argument_is_named_at_construction(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        MoCo(**{name: value})
