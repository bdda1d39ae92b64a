"""What FSDP2 gathers together: a block as a whole, never its layers one by one."""

from __future__ import annotations

import torch

from backends.torch.fsdp2 import _groups


class Net(torch.nn.Module):
    """Two blocks of two layers, a head, and a layer too small for a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
        self.blocks = torch.nn.ModuleList([block, torch.nn.Sequential(torch.nn.Linear(32, 32))])
        self.head = torch.nn.Linear(32, 64)
        self.small = torch.nn.Linear(4, 4)


def test_blocks_are_gathered_whole_and_layers_outside_of_them_alone() -> None:
    assert [name for name, _ in _groups(Net(), 1000)] == ["blocks.0", "blocks.1", "head"]


def test_frozen_and_small_modules_stay_with_the_root() -> None:
    net = Net()
    net.blocks[0].requires_grad_(False)
    assert [name for name, _ in _groups(net, 1500)] == ["head"]
