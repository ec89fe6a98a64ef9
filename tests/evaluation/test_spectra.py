import math

import numpy as np
import pytest
import torch

from lit_ssl import evaluation
from lit_ssl.evaluation import alignment, alpha_req, feature_std, knn_predict, rankme, uniformity


def test_knn_predict_is_its_definition(monkeypatch):
    bank, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    x = torch.randn(17, 8, generator=torch.Generator().manual_seed(1))
    expected = []
    for row in x:
        cosine = torch.nn.functional.cosine_similarity(bank, row[None])
        votes = [0.0] * 3
        for i in cosine.argsort(descending=True)[:7].tolist():
            votes[int(labels[i])] += math.exp(float(cosine[i]) / 0.1)
        expected.append(int(np.argmax(votes)))
    assert knn_predict(bank, labels, x, classes=3, k=7, temperature=0.1).tolist() == expected
    monkeypatch.setattr(evaluation.neighbours, "_SIMILARITIES", 100)  # two rows at a time
    assert knn_predict(bank, labels, x, classes=3, k=7, temperature=0.1).tolist() == expected


def test_knn_of_a_small_bank_and_a_tiny_temperature():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_predict(bank, labels, bank * 5, classes=3, k=20, temperature=1e-4).tolist() == [0, 1, 2]


def spectrum(values, n=4000):
    """Rows whose singular values are exactly these."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))[0]
    return left * torch.as_tensor(values, dtype=torch.float64) @ right


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_rankme_on_known_spectra(shape):
    x = spectrum([1.0] * 5 + [0.0] * 3)
    share = np.array([4.0, 2.0, 1.0, 1.0]) / 8
    y = spectrum([4.0, 2.0, 1.0, 1.0])
    if shape == "wide":
        x, y = x.T, y.T
    assert rankme(x) == pytest.approx(5, rel=1e-4)
    assert rankme(y) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_alpha_on_a_power_law():
    n, dim = 5000, 64
    basis = torch.linalg.qr(torch.randn(n, dim + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), basis[:, :dim]], 1))[0][:, 1:]  # centred
    for alpha in (0.5, 1.0, 2.0):
        x = basis * torch.arange(1, dim + 1, dtype=torch.float64) ** (-alpha / 2)
        assert alpha_req(x + 3) == pytest.approx(alpha, rel=1e-6)
        assert alpha_req(x, first=1, last=10) == pytest.approx(alpha, rel=1e-6)


def test_alpha_needs_three_eigenvalues():
    assert math.isnan(alpha_req(torch.randn(100, 12)))


def test_alignment_and_uniformity_are_their_definitions():
    z1, z2 = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    u1, u2 = (torch.nn.functional.normalize(z, dim=1) for z in (z1, z2))
    assert alignment(z1, z2 * 3) == pytest.approx(float((u1 - u2).norm(dim=1).square().mean()))
    assert alignment(z1, z1 * 2) == pytest.approx(0, abs=1e-12)
    expected = float(torch.pdist(u1).square().mul(-2).exp().mean().log())
    assert uniformity(z1) == pytest.approx(expected, rel=1e-9)
    many = torch.randn(2500, 3, dtype=torch.float64)  # several pieces
    expected = float(torch.pdist(torch.nn.functional.normalize(many, dim=1)).square().mul(-2).exp().mean().log())
    assert uniformity(many) == pytest.approx(expected, rel=1e-9)


def test_feature_std_of_an_even_spread_is_one():
    x = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    assert feature_std(x * 7) == pytest.approx(1, abs=0.02)


def test_a_collapsed_encoder_shows_in_every_number():
    point = torch.ones(100, 16) * 3 + 1e-6 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(point) < 1e-4
    assert uniformity(point) == pytest.approx(0, abs=1e-4)
    assert rankme(point) == pytest.approx(1, abs=1e-3)
    line = torch.randn(100, 1) @ torch.randn(1, 16)
    assert rankme(line) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(10, 4)) == 0
