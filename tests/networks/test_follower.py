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


def test_states_of_other_precisions_load():
    copies, network = pair(torch.bfloat16)
    short = nn.ModuleDict({"copies": copies, "follower": Follower([copies], [network], 0.9)})
    short["follower"].follow(1, 10)
    long_copies, long_network = pair(torch.float32)
    long = nn.ModuleDict({"copies": long_copies, "follower": Follower([long_copies], [long_network], 0.9)})
    state = short.state_dict()
    long.load_state_dict(state)
    short.load_state_dict(long.state_dict())
    assert torch.equal(short["follower"].masters, Follower([copies], [network], 0.9).masters)
    assert "follower.masters" in state


def test_the_momentum_of_each_step():
    follower = Follower([nn.Linear(1, 1)], [nn.Linear(1, 1)], 0.5, "cosine")
    assert [follower.momentum_at(step, 4) for step in (0, 2, 4)] == pytest.approx([0.5, 0.75, 1.0])
    assert follower.momentum_at(3, float("inf")) == 0.5
    for name, value in (("momentum", 1.5), ("schedule", "linear")):
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            Follower([], [], **{"momentum": 0.5, name: value})
