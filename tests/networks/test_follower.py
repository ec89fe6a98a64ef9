"""A copy that follows: in its parameters' own precision from float32 on, in float32 below."""

import copy

import pytest
import torch
from torch import nn

from lit_ssl.networks.follower import Follower


def pair(dtype):
    torch.manual_seed(0)
    copies = nn.Linear(8, 8).to(dtype)
    network = copy.deepcopy(copies)
    with torch.no_grad():
        network.weight.add_(1.0)
    return copies, network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_parameters_are_moved_in_place(dtype):
    copies, network = pair(dtype)
    follower = Follower([copies], [network], 0.9)
    assert not follower.state_dict()
    expected = torch.lerp(copies.weight, network.weight, 1 - 0.9)
    follower.follow(1, 10)
    assert torch.equal(copies.weight, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_ones_do_not_stand_still(dtype):
    copies, network = pair(dtype)
    with torch.no_grad():
        network.weight.copy_(copies.weight + 0.05)
    follower = Follower([copies], [network], 0.999).to(dtype)
    first, gap = copies.weight.detach().clone(), (network.weight - copies.weight).detach().float()
    for step in range(40):
        follower.follow(step + 1, 40)
    masters = follower.masters.view(torch.float32)[: first.numel()].view_as(first)
    assert ((masters - first.float()) / gap).mean().item() == pytest.approx(1 - 0.999**40, rel=0.01)
    assert torch.equal(copies.weight, masters.to(dtype))
    standing = first.clone()
    for _ in range(40):
        standing.lerp_(network.weight.detach(), 0.001)
    assert ((standing - first).float() / gap).abs().mean() < 0.5 * (1 - 0.999**40)  # what becomes of it without


def followed(dtype):
    """A copy and its follower as a method holds them, one step on its way."""
    copies, network = pair(dtype)
    method = nn.ModuleDict({"copies": copies, "follower": Follower([copies], [network], 0.999)})
    method["follower"].follow(1, 10)
    return method, network


def test_what_was_built_in_float32_has_masters_once_it_is_converted():
    copies, network = pair(torch.float32)
    method = nn.ModuleDict({"copies": copies, "follower": Follower([copies], [network], 0.999)})
    assert "follower.masters" not in method.state_dict()
    first = copies.weight.detach().bfloat16().float()
    method.bfloat16()
    network.bfloat16()
    for step in range(40):
        method["follower"].follow(step + 1, 40)
    masters = method["follower"].masters.view(torch.float32)[: first.numel()].view_as(first)
    gap = network.weight.detach().float() - first
    assert ((masters - first) / gap).mean().item() == pytest.approx(1 - 0.999**40, rel=0.01)


def test_states_of_other_precisions_load():
    long, _ = followed(torch.float32)
    short, _ = followed(torch.bfloat16)
    short.load_state_dict(long.state_dict())  # of float32, or of before there were masters
    of_copies = torch.cat([p.detach().float().flatten() for p in short["copies"].parameters()])
    assert torch.equal(short["follower"].masters.view(torch.float32), of_copies)


def test_a_state_with_masters_goes_on_exactly_where_conversion_comes_after_loading():
    short, network = followed(torch.bfloat16)
    again, network_again = followed(torch.float32)
    again.load_state_dict(short.state_dict())
    again.bfloat16()
    network_again.bfloat16().load_state_dict(network.state_dict())
    for method in (short, again):
        method["follower"].follow(2, 10)
    assert torch.equal(again["follower"].masters, short["follower"].masters)
    assert torch.equal(again["copies"].weight, short["copies"].weight)


def test_the_momentum_of_each_step():
    follower = Follower([nn.Linear(1, 1)], [nn.Linear(1, 1)], 0.5, "cosine")
    assert [follower.momentum_at(step, 4) for step in (0, 2, 4)] == pytest.approx([0.5, 0.75, 1.0])
    assert follower.momentum_at(3, float("inf")) == 0.5
    for name, value in (("momentum", 1.5), ("schedule", "linear")):
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            Follower([], [], **{"momentum": 0.5, name: value})
