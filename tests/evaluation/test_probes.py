import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lit_ssl import evaluation
from lit_ssl.evaluation import (
    Scores,
    alignment,
    alpha_req,
    evaluate,
    few_labels,
    format_scores,
    knn,
    linear_probe,
    logistic_regression,
    summary,
    uniformity,
)


def blobs(n, dim=20, classes=4, spread=2.0, seed=0):
    """Overlapping Gaussian classes; features of very different scales and means."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    y = torch.randint(classes, (n,), generator=generator)
    x = centres[y] + spread * torch.randn(n, dim, generator=generator)
    return x * torch.logspace(-2, 2, dim) + torch.linspace(-5, 50, dim), y


def sklearn_fit(x, y, strength):
    model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=20_000)
    return make_pipeline(StandardScaler(), model).fit(x.double().numpy(), y.numpy())


def mean_nll(logits, y):
    return float(torch.nn.functional.cross_entropy(logits, y))


@pytest.mark.parametrize("strength", [1000.0, 1.0, 0.01])
@pytest.mark.parametrize(("n", "dim"), [(400, 20), (60, 150)])
def test_logistic_regression_is_sklearns_at_equal_strength(strength, n, dim):
    x, y = blobs(n, dim)
    test_x, _ = blobs(200, dim, seed=1)
    classes, weight, bias = logistic_regression(x, y, strength=strength, tolerance=1e-7)
    ours = (test_x.double() @ weight + bias).softmax(1)
    theirs = sklearn_fit(x, y, strength).predict_proba(test_x.double().numpy())
    assert classes.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)


def test_the_default_tolerance_is_converged_for_every_purpose():
    x, y = blobs(500)
    _, weight, bias = logistic_regression(x, y, strength=0.1)
    _, exact_weight, exact_bias = logistic_regression(x, y, strength=0.1, tolerance=1e-9)
    ours, exact = x.double() @ weight + bias, x.double() @ exact_weight + exact_bias
    assert (ours.softmax(1) - exact.softmax(1)).abs().max() < 5e-3
    assert abs(mean_nll(ours, y) - mean_nll(exact, y)) < 1e-5


def test_float32_products_agree_with_float64(monkeypatch):
    x, y = blobs(500)
    double = logistic_regression(x, y, strength=1.0, tolerance=1e-6)
    monkeypatch.setattr(evaluation.probes, "_SINGLE_FROM", 0)
    single = logistic_regression(x, y, strength=1.0, tolerance=1e-6)
    torch.testing.assert_close(
        x.double() @ single[1] + single[2], x.double() @ double[1] + double[2], atol=1e-4, rtol=0
    )


def test_without_rotation_the_same_solution(monkeypatch):
    x, y = blobs(300)
    rotated = logistic_regression(x, y, strength=1.0, tolerance=1e-7)
    monkeypatch.setattr(evaluation.logistic, "_ROTATE_UP_TO", 0)
    plain = logistic_regression(x, y, strength=1.0, tolerance=1e-7)
    torch.testing.assert_close(plain[1], rotated[1], atol=1e-5, rtol=1e-3)


def test_it_does_not_depend_on_the_scale_of_features_and_survives_constant_ones():
    x, y = blobs(300)
    test_x, test_y = blobs(300, seed=1)
    expected = linear_probe(x, y, test_x, test_y)
    wide = [torch.cat([t * 1e-3, torch.full((len(t), 3), 7.0), torch.zeros(len(t), 1)], 1) for t in (x, test_x)]
    assert linear_probe(wide[0], y, wide[1], test_y) == pytest.approx(expected, abs=0.005)


def test_separable_classes_with_almost_no_penalty_stay_finite():
    x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    y = torch.tensor([0, 0, 1, 1])
    _, weight, bias = logistic_regression(x, y, strength=1e-6)
    assert torch.isfinite(weight).all()
    assert ((x.double() @ weight + bias).argmax(1) == y).all()


def test_the_chosen_strength_suits_the_data():
    """Many useless features and few rows need a strong prior: the chosen one must come close to the best on a grid."""
    x, y = blobs(200, dim=20)
    noise = torch.randn(2200, 300, generator=torch.Generator().manual_seed(3))
    test_x, test_y = blobs(2000, seed=1)
    x, test_x = torch.cat([x, noise[:200]], 1), torch.cat([test_x, noise[200:]], 1)

    def held_out(strength):
        _, weight, bias = logistic_regression(x, y, strength=strength)
        return mean_nll(test_x.double() @ weight + bias, test_y)

    grid = {s: held_out(s) for s in (1e4, 1e3, 300.0, 100.0, 10.0, 0.1)}
    assert held_out(None) < min(grid.values()) + 0.05
    assert held_out(None) < grid[0.1] - 0.05


def test_of_many_rows_a_sample_chooses_the_strength(monkeypatch):
    x, y = blobs(3000)
    test_x, test_y = blobs(1000, seed=1)
    _, weight, bias = logistic_regression(x, y)
    monkeypatch.setattr(evaluation.probes, "_SEARCH_ROWS", 600)
    _, other_weight, other_bias = logistic_regression(x, y)
    ours, other = (test_x.double() @ w + b for w, b in ((weight, bias), (other_weight, other_bias)))
    assert not torch.equal(ours, other)
    assert abs(mean_nll(ours, test_y) - mean_nll(other, test_y)) < 0.01


def test_held_out_labels_choose_nothing():
    x, y = blobs(300)
    test_x, test_y = blobs(100, seed=1)
    shuffled = test_y[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    _, weight, bias = logistic_regression(x, y)
    predicted = (test_x.double() @ weight + bias).argmax(1)
    assert linear_probe(x, y, test_x, test_y) == pytest.approx(float((predicted == test_y).double().mean()))
    assert linear_probe(x, y, test_x, shuffled) == pytest.approx(float((predicted == shuffled).double().mean()))


def test_labels_need_not_be_contiguous_and_unlabelled_rows_are_left_out():
    x, y = blobs(300)
    test_x, test_y = blobs(100, seed=1)
    expected = linear_probe(x, y, test_x, test_y)
    junk = torch.full((40, 20), 1e4)
    far = y * 7 + 3
    mixed_x, mixed_y = torch.cat([junk, x]), torch.cat([torch.full((40,), -1), far])
    held_x, held_y = torch.cat([test_x, junk]), torch.cat([test_y * 7 + 3, torch.full((40,), -1)])
    assert linear_probe(mixed_x, mixed_y, held_x, held_y) == expected
    assert knn(mixed_x, mixed_y, held_x, held_y) == knn(x, y, test_x, test_y)


def test_a_class_unseen_in_training_counts_as_wrong():
    x, y = blobs(300)
    seen = y < 3
    accuracy = linear_probe(x[seen], y[seen], x, y)
    assert accuracy <= float(seen.double().mean())
    assert knn(x[seen], y[seen], x, y) <= float(seen.double().mean())


def test_few_labels_is_the_mean_of_single_fits():
    """Batched draws give what draws give one by one."""
    x, y = blobs(400)
    test_x, test_y = blobs(500, seed=1)
    mean, error = few_labels(x, y, test_x, test_y, per_class=10, draws=4)
    whole = evaluation.probes._SINGLE_FROM
    assert whole > x.numel()  # so both ways run in float64
    centre, scale = x.double().mean(0), x.double().std(0, correction=0)
    z, test_z = (x.double() - centre) / scale, (test_x.double() - centre) / scale
    scores = []
    for i in range(4):
        rows = evaluation.probes._draw(y, 10, i)
        assert y[rows].bincount().tolist() == [10] * 4
        weight, bias = evaluation.probes._fit(z[rows][None], y[rows][None], 4, None, 1e-4, 0)
        scores.append(float(((test_z @ weight[0] + bias[0]).argmax(1) == test_y).double().mean()))
    assert mean == pytest.approx(np.mean(scores), abs=2e-3)
    assert error == pytest.approx(np.std(scores, ddof=1) / 2, rel=0.2)
    assert len(set(scores)) > 1


def test_few_labels_takes_all_of_a_class_that_has_fewer():
    x, y = blobs(400)
    rare = torch.cat([(y == 0).nonzero().flatten()[:3], (y != 0).nonzero().flatten()])
    assert evaluation.probes._draw(y[rare], 10, 0).shape == (33,)
    mean, _ = few_labels(x[rare], y[rare], x, y)
    assert mean > 0.4


def test_more_labels_are_better():
    x, y = blobs(4000)
    test_x, test_y = blobs(1000, seed=1)
    assert few_labels(x, y, test_x, test_y)[0] < linear_probe(x, y, test_x, test_y)


def test_probes_repeat_exactly_and_draw_no_global_number():
    x, y = blobs(300)
    before = torch.get_rng_state()
    first = evaluate(x, y, x, y, draws=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert evaluate(x, y, x, y, draws=2) == first


def test_autocast_and_low_matmul_precision_change_nothing():
    x, y = blobs(300)
    expected = logistic_regression(x, y)[1]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(logistic_regression(x, y)[1], expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_evaluate_summary_and_table():
    x, y = blobs(400)
    test_x, test_y = blobs(200, seed=1)
    scores = evaluate(x, y, test_x, test_y, draws=3)
    assert scores.linear == linear_probe(x, y, test_x, test_y)
    assert scores.knn == knn(x, y, test_x, test_y)
    assert (scores.ten_labels, scores.ten_labels_se) == few_labels(x, y, test_x, test_y, draws=3)
    rows = {"raw_pixels": Scores(0.7, 0.831, 0.708, 0.004), "untrained": scores, "trained": scores}
    assert summary(rows)["raw_pixels"] == {"knn": 0.7, "linear": 0.831, "ten_labels": 0.708, "ten_labels_se": 0.004}
    lines = format_scores(rows).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert len(set(map(len, lines))) == 1  # columns end together
    assert lines[1].split() == ["raw", "pixels", "0.700", "0.831", "0.708", "±", "0.004"]


X, Y = torch.randn(20, 3), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_probe(X[0], Y, X, Y), r"train_x must be .*\(N, D\).*\(3,\)"),
        (lambda: linear_probe(X.int(), Y, X, Y), "train_x must be a floating-point"),
        (lambda: linear_probe(X * math.nan, Y, X, Y), "train_x must be finite"),
        (lambda: linear_probe(X, Y[:5], X, Y), r"train_y must be an integer tensor of shape \(20,\)"),
        (lambda: linear_probe(X, Y.float(), X, Y), "train_y must be an integer tensor"),
        (lambda: linear_probe(X, Y, X, Y * 0 - 1), "test_y must hold at least one label"),
        (lambda: few_labels(X, Y, X, Y, draws=1), "draws must be an integer of at least 2, got 1"),
        (lambda: few_labels(X, Y, X, Y, per_class=0), "per_class must be an integer of at least 1, got 0"),
        (lambda: knn(X, Y, X, Y, k=0), "k must be an integer of at least 1, got 0"),
        (lambda: knn(X, Y, X, Y, temperature=0), "temperature must be a positive number, got 0"),
        (lambda: logistic_regression(X, Y, strength=0.0), "strength must be a positive number or None, got 0.0"),
        (lambda: logistic_regression(X, Y, tolerance=0.0), "tolerance must be a positive number, got 0.0"),
        (lambda: alpha_req(X, first=5, last=6), "last must be an integer of at least 7, got 6"),
        (lambda: alignment(X, X[:4]), r"same shape, got \(20, 3\) and \(4, 3\)"),
        (lambda: uniformity(X[:1]), "at least 2 rows, got 1"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
