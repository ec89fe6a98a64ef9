"""What test_norms.py has each rank do: BatchNorm over shards against BatchNorm over the whole batch."""

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from lit_ssl.networks import synchronize_batchnorm

SHARDS = [[5, 3], [8, 0]]  # unequal, and a rank without any row
CASES = {
    "1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "1d-length": (lambda: nn.BatchNorm1d(3, affine=False), (3, 6)),
    "2d": (lambda: nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), (3, 4, 5)),
    "2d-cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 5)),
    "2d-untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(3), (3, 2, 2, 2)),
    "act": (lambda: BatchNormAct2d(3, act_layer=nn.SiLU), (3, 4, 5)),
    "net": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2),
                                  nn.BatchNorm1d(2, affine=False)), (3, 4, 5)),
}  # fmt: skip


def compare(build, shape, shards, dtype, tolerance):
    torch.manual_seed(0)
    x = (torch.randn(sum(shards), *shape) * 3 + 20).to(dtype)
    module = build().to(dtype)
    module(x[:2].float().to(dtype))  # materialises lazy layers
    for p in module.parameters():
        nn.init.normal_(p)
    plain = module
    synced = build().to(dtype)
    synced(x[:2])
    synced.load_state_dict(plain.state_dict())
    synced = synchronize_batchnorm(synced)

    whole = x.clone().requires_grad_()
    mine = x.split(shards)[dist.get_rank()].clone().requires_grad_()
    for _ in range(2):  # twice: running statistics move on
        target = plain(whole)
        weight = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        for m, inputs in ((plain, whole), (synced, mine)):
            m.zero_grad()
            inputs.grad = None
        (target * weight).square().sum().backward()
        out = synced(mine)
        (out * weight.split(shards)[dist.get_rank()]).square().sum().backward()

    rank = dist.get_rank()
    torch.testing.assert_close(out, target.split(shards)[rank], rtol=tolerance, atol=tolerance)
    scale = max(1.0, whole.grad.abs().max().item())
    torch.testing.assert_close(mine.grad, whole.grad.split(shards)[rank], rtol=tolerance, atol=tolerance * scale)
    for (name, p), q in zip(synced.named_parameters(), plain.parameters(), strict=True):
        dist.all_reduce(p.grad)
        scale = max(1.0, q.grad.abs().max().item())
        torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance * scale, msg=name)
    for (name, b), c in zip(synced.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=tolerance, atol=tolerance, msg=name)

    synced.eval(), plain.eval()  # from here on every rank is on its own, even with no rows at all on another
    if rank == 0:
        torch.testing.assert_close(synced(x[:2]), plain(x[:2]), rtol=tolerance, atol=tolerance)


def compare_all(rank, world, compiled=False):
    """The names of what was compared; a difference is an error."""
    assert world == 2
    compared = []
    for name, (build, shape) in CASES.items():
        for shards in SHARDS:
            compare(build, shape, shards, torch.float64, 1e-12)
        if name == "2d":
            compare(build, shape, SHARDS[0], torch.float32, 1e-4)
        compared.append(name)

    # a plain BatchNorm over the shards must not pass, or the comparison shows nothing
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm1d(3).double()
    assert (norm(x.split([5, 3])[rank]) - norm(x).split([5, 3])[rank]).abs().max() > 1e-2

    # half precision comes out as it went in, with statistics taken in float32
    norm = synchronize_batchnorm(nn.BatchNorm2d(2))
    half = (torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(rank)) + 300).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(half)
    assert out.dtype == torch.bfloat16
    parts = [torch.empty_like(half) for _ in range(2)]
    dist.all_gather(parts, half)
    expected = nn.BatchNorm2d(2)
    expected(torch.cat(parts).float())
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)

    if compiled:
        norm = synchronize_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).double()
        mine = x.split([5, 3])[rank]
        eager = norm(mine)
        torch.testing.assert_close(torch.compile(norm, backend="aot_eager")(mine), eager, rtol=1e-10, atol=1e-10)
        compared.append("compiled")
    return compared
