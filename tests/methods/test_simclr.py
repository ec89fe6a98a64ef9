import pytest
import torch

from lit_ssl import SimCLR
from lit_ssl.losses import nt_xent
from lit_ssl.views import SimCLRViews, with_keys, with_views


@pytest.fixture
def method(spec, tiny):
    method = SimCLR(spec=spec, projector_hidden=16, projector_dim=8, **tiny)
    method.configure_model()
    return method


@pytest.fixture
def batch(images, method):
    batch = {"image": images, "index": torch.arange(64), "label": torch.full((64,), -1)}
    return with_views(with_keys(batch, 0, 0), method.views, method.spec, method.dtype)


def test_its_loss_is_nt_xent_of_the_projected_views(method, batch):
    first, second = (method.projector(method.backbone(method.normalize(v))) for v in batch["views"])
    method.eval()
    first, second = (method.projector(method.backbone(method.normalize(v))) for v in batch["views"])
    torch.testing.assert_close(method.loss(batch)["loss"], nt_xent(first, second, temperature=0.2))


def test_the_authors_head_has_three_layers_and_a_norm_at_its_end(spec, tiny):
    method = SimCLR(
        spec=spec, projector_hidden=16, projector_dim=8, projector_layers=3, projector_last_norm=True, **tiny
    )
    method.configure_model()
    assert sum(isinstance(part, torch.nn.Linear) for part in method.projector) == 3
    out = method.projector(torch.randn(64, method.num_features))
    torch.testing.assert_close(out.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(8), atol=1e-2, rtol=0)


def test_every_parameter_learns(method, batch):
    method.loss(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.projector.parameters() if p.ndim > 1)
    assert all(p.grad is not None for p in method.parameters())


def test_training_lowers_the_loss(spec, tiny, loader, make_trainer):
    losses = []

    class Recorded(SimCLR):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    method = Recorded(spec=spec, optimizer="adamw", lr=0.05, views=SimCLRViews(scale=(0.5, 1.0)), **tiny)
    make_trainer(max_epochs=15).fit(method, loader)
    assert len(losses) == 60
    assert torch.stack(losses[-8:]).mean() < torch.stack(losses[:8]).mean() - 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("beta", -0.5),
        ("tau_plus", 1.0),
        ("lr", 0.0),
        ("projector_layers", 0),
        ("projector_last_norm", 1),
    ],
)
def test_a_bad_argument_is_named_at_construction(name, value):
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        SimCLR(**{name: value})


def test_hard_negatives_reach_the_loss(spec, tiny, batch):
    losses = set()
    for options in ({}, {"beta": 1.0}, {"beta": 1.0, "tau_plus": 0.1}, {"decoupled": True}):
        method = SimCLR(spec=spec, **options, **tiny)
        method.configure_model()
        losses.add(method.loss(batch)["loss"].item())
    assert len(losses) == 4
