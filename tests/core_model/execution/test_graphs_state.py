"""When a graphed part may be replayed, with a stand-in for the capture: what a step that dies leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from core_model.execution.cuda_graphs import GraphedPart, _Captured
from core_model.execution.frozen import freeze


class Replayed:
    """In the place of a CUDA graph: computes into the same buffers."""

    def __init__(self, work: Any) -> None:
        self.replay = work


class OnTheCpu(GraphedPart):
    """A part that is graphed without a GPU."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.order: list[str] = []

    @staticmethod
    def _on_gpu(x: torch.Tensor) -> bool:
        return True

    def _warm(self, x: torch.Tensor, others: Any) -> None:
        self.order.append(f"warm {len(x)}")

    def _capture(self, x: torch.Tensor, others: tuple[Any, ...]) -> _Captured:
        self.order.append(f"capture {len(x)}")
        given, fixed = x.detach().clone(), tuple(o.clone() if isinstance(o, torch.Tensor) else o for o in others)
        made, made_grad, given_grad = (
            torch.zeros_like(self._run(given, *fixed)[0].detach()),
            torch.zeros(3, 8),
            torch.zeros(3, 8),
        )

        def forward() -> None:
            made.copy_(self._run(given, *fixed)[0].detach())

        def backward() -> None:
            leaf = given.clone().requires_grad_()
            with torch.enable_grad():
                (found,) = torch.autograd.grad(self._run(leaf, *fixed)[0], leaf, made_grad)
            given_grad.copy_(found)

        return _Captured(
            forward=Replayed(forward),
            given=given,
            made=(made,),
            others=tuple(o for o in fixed if isinstance(o, torch.Tensor)),
            backward=Replayed(backward),
            made_grad=made_grad,
            given_grad=given_grad,
        )


@pytest.fixture
def graphed() -> OnTheCpu:
    torch.manual_seed(0)
    module = freeze(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
    return OnTheCpu(module, lambda x: (module(x),), gradient=True)


@pytest.fixture
def shifted() -> OnTheCpu:
    """A part that takes a tensor without gradient and a constant besides."""
    torch.manual_seed(0)
    module = freeze(nn.Linear(8, 8))
    return OnTheCpu(module, lambda x, by, times: (module(x) * times + by.sum(),), gradient=True)


def test_other_tensors_are_copied_and_constants_have_graphs_of_their_own(shifted: OnTheCpu) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    assert shifted.capture(x, torch.zeros(2), 1)
    assert (shifted.captures, shifted.replays) == (1, 0)
    for by, times in ((torch.ones(2), 1), (torch.full((2,), 5.0), 1), (torch.ones(2), 3)):
        out = shifted(x, by, times)[0]
        torch.testing.assert_close(out, shifted._run(x, by, times)[0], rtol=0, atol=0)
        out.sum().backward()
    assert (shifted.captures, shifted.replays) == (2, 3)
    shifted.clear()
    shifted(x, torch.ones(2), 3)[0].sum().backward()
    assert shifted.captures == 3


def step(graphed: OnTheCpu, *, dies: bool = False) -> None:
    """Forward, loss and backward, held against the plain module; or only the forward."""
    x = torch.randn(3, 8, requires_grad=True)
    out = graphed(x)[0]
    if dies:
        raise OSError("a peer is gone")
    (got,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad(graphed._run(x)[0].square().sum(), x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_step_that_died_does_not_turn_the_graphs_off(graphed: OnTheCpu) -> None:
    step(graphed)
    assert graphed.replays == 1
    for died in range(1, 4):
        with pytest.raises(OSError, match="a peer is gone"):
            step(graphed, dies=True)
        assert not graphed.awaits_backward
        step(graphed)
        assert graphed.replays == 1 + 2 * died


def test_a_loss_that_is_thrown_away_is_not_waited_for(graphed: OnTheCpu) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    loss = graphed(x)[0].sum()
    assert graphed.awaits_backward
    del loss
    assert not graphed.awaits_backward


def test_an_error_in_the_replay_itself_is_no_pass(graphed: OnTheCpu) -> None:
    step(graphed)
    (captured,) = graphed._captured.values()
    whole = captured.forward

    def fail() -> None:
        raise RuntimeError("out of memory")

    captured.forward = Replayed(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(graphed)
    captured.forward = whole
    step(graphed)
    assert not graphed.awaits_backward


def test_a_pass_that_is_still_open_keeps_its_buffers(graphed: OnTheCpu) -> None:
    x, other = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    first = graphed(x)[0]
    second = graphed(other)[0]  # without the graph
    assert graphed.replays == 1
    for out, given in ((second, other), (first, x)):
        (got,) = torch.autograd.grad(out.square().sum(), given)
        (wanted,) = torch.autograd.grad(graphed._run(given)[0].square().sum(), given)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert not graphed.awaits_backward


def test_a_second_backward_over_taken_buffers_is_refused(graphed: OnTheCpu) -> None:
    """It would give the gradient at another input without a word."""
    x = torch.randn(3, 8, requires_grad=True)
    loss = graphed(x)[0].sum()
    loss.backward(retain_graph=True)
    step(graphed)
    with pytest.raises(RuntimeError, match="second backward pass through a CUDA graph"):
        loss.backward()


def test_all_that_is_captured_ahead_is_run_before_the_first_capture(shifted: OnTheCpu) -> None:
    """So that memory is needed once, for the largest; what is captured already is left alone."""
    calls = [(torch.randn(rows, 8, requires_grad=True), torch.zeros(2), 1) for rows in (3, 2, 1)]
    shifted.capture_all(calls[:2])
    assert shifted.order == ["warm 3", "warm 2", "capture 3", "capture 2"]
    shifted.capture_all(calls)
    assert shifted.order[4:] == ["warm 1", "capture 1"]
    assert shifted.captures == 3
