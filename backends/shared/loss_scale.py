"""One dynamic loss scale for fp16, the same in every engine under precision mode ``matched``.

The rule is `backends.base.LossScale`: halve after `hysteresis` overflows (the budget is refilled when the scale grows),
double after `window` steps in a row without overflow, never below `floor`. With ``hysteresis == 1`` it is the rule of
``torch.amp.GradScaler(init_scale=2**initial_power, growth_interval=window)`` (a test holds the two together).
DeepSpeed's own DynamicLossScaler doubles after ``window + 1`` steps and raises at the floor; that is `native`.

All state is on the device, so neither scaling nor updating waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from backends.base import LossScale


class DynamicScale:
    """The scale and its history. `scale` is a 0-dim fp32 tensor on `device`."""

    def __init__(self, rule: LossScale, device: torch.device) -> None:
        self.rule = rule
        self.scale = torch.tensor(2.0**rule.initial_power, dtype=torch.float32, device=device)
        self._good = torch.zeros((), dtype=torch.int64, device=device)  # steps in a row without overflow
        self._budget = torch.tensor(rule.hysteresis, dtype=torch.int64, device=device)

    def unscale(self, gradients: Iterable[torch.Tensor]) -> torch.Tensor:
        """Divides `gradients` by the scale in place; returns a 0-dim bool tensor: any of them not finite."""
        found = torch.zeros(1, dtype=torch.float32, device=self.scale.device)
        by_kind: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for gradient in gradients:
            by_kind.setdefault((gradient.device, gradient.dtype), []).append(gradient)
        inverse = self.scale.double().reciprocal().float()
        for (device, _), group in by_kind.items():
            flag = torch.zeros(1, dtype=torch.float32, device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(group, flag, inverse.to(device))
            found += flag.to(found.device)
        return (found > 0).squeeze(0)

    def update(self, overflow: torch.Tensor) -> None:
        """Moves the scale after a step that overflowed (or not); `overflow`: 0-dim bool on the same device."""
        rule = self.rule
        shrink = overflow & (self._budget <= 1)
        smaller = (self.scale * 0.5).clamp(min=rule.floor)
        self._good = torch.where(overflow, torch.zeros_like(self._good), self._good + 1)
        grow = self._good >= rule.window
        self.scale = torch.where(shrink, smaller, torch.where(grow, self.scale * 2.0, self.scale))
        spent = torch.where(overflow & ~shrink, self._budget - 1, self._budget)
        self._budget = torch.where(grow, torch.full_like(spent, rule.hysteresis), spent)
        self._good = torch.where(grow, torch.zeros_like(self._good), self._good)

    def state(self) -> dict[str, float | int]:
        """For a checkpoint. Waits for the device."""
        return {"scale": float(self.scale), "good": int(self._good), "budget": int(self._budget)}

    def load(self, state: dict[str, float | int]) -> None:
        self.scale.fill_(state["scale"])
        self._good.fill_(state["good"])
        self._budget.fill_(state["budget"])
