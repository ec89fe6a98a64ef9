"""BatchNorm over all ranks: in one process it is the plain one; in two it is the plain one over both shards."""

import copy
import pickle

import pytest
import timm
import torch
from ranks import run_ranks
from sync_batchnorm_ranks import CASES, compare_all
from torch import nn

from lit_ssl.networks import synchronize_batchnorm
from lit_ssl.networks.norms import SynchronizedBatchNorm2d, SynchronizedBatchNormAct2d, _global_batch_norm


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one_on_the_whole_batch(compiled):
    for compared in run_ranks(compare_all, 2, compiled):
        assert compared == [*CASES, *(["compiled"] if compiled else [])]


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_a_single_process_is_bit_identical(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0)
    synced = copy.deepcopy(plain)
    keys, parameters = list(synced.state_dict()), list(map(id, synced.parameters()))
    assert synchronize_batchnorm(synced) is synced
    assert list(synced.state_dict()) == keys
    assert list(map(id, synced.parameters())) == parameters
    kinds = {type(m) for m in synced.modules()}
    assert kinds & {SynchronizedBatchNorm2d, SynchronizedBatchNormAct2d}
    assert not kinds & {nn.BatchNorm2d, timm.layers.BatchNormAct2d}
    x = torch.randn(2, 3, 32, 32)
    for model in (plain, synced):
        model(x).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), synced.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for key, value in plain.state_dict().items():
        assert torch.equal(value, synced.state_dict()[key]), key
    assert torch.equal(plain.eval()(x), synced.eval()(x))


def test_the_formula_alone_equals_the_plain_norm():
    x = torch.randn(6, 4, 3, dtype=torch.float64) + 100
    plain, own = nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4).double()
    torch.testing.assert_close(_global_batch_norm(own, x), plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


def test_statistics_do_not_cancel_in_float32():
    x = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 5000
    out = _global_batch_norm(nn.BatchNorm2d(1), x)
    torch.testing.assert_close(out, nn.BatchNorm2d(1).double()(x.double()).float(), rtol=1e-3, atol=1e-3)


def test_one_can_convert_again_copy_pickle_and_compile():
    model = synchronize_batchnorm(synchronize_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))
    x = torch.randn(8, 3)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    twins[2] = torch.compile(twins[2], backend="eager", fullgraph=True)  # no graph break in a single process
    expected = model(x)
    for twin in twins:
        assert torch.equal(twin(x), expected)
    alone = nn.BatchNorm2d(3)
    assert synchronize_batchnorm(alone) is alone
    assert type(alone) is SynchronizedBatchNorm2d


def test_unknown_batchnorms_are_named():
    class Mine(nn.BatchNorm1d):
        pass

    with pytest.warns(UserWarning, match="Mine"):
        synchronize_batchnorm(nn.Sequential(Mine(3)))
