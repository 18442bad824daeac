"""Loss scaling for fp16 (Micikevicius et al. 2018): torch's GradScaler, and a count of the skipped steps."""

from __future__ import annotations

import torch
from torch import Tensor


class Scaling:
    """Scales the loss, and skips a step whose gradient overflows; without `enabled` it does neither."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._one = torch.ones((), device=device) if enabled else None
        self._skipped = torch.zeros((), dtype=torch.int64, device=device) if enabled else None

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def unscale(self, updater: torch.optim.Optimizer) -> None:
        """Bring the gradients to their true size, before something looks at it; once a step."""
        self._scaler.unscale_(updater)

    def step(self, updater: torch.optim.Optimizer) -> None:
        """Take `updater`'s step, or skip it, and set the scale of the next one."""
        if self._one is None or self._skipped is None:
            updater.step()
            return
        # Fused optimizers would be left to skip the step themselves. Where its first one is skipped, torch
        # 2.13's SGD goes on from momentum that was never set; so the host looks, and waits for the device.
        updater._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        before = self._scaler.scale(self._one)
        self._scaler.step(updater)
        self._scaler.update()
        self._skipped += self._scaler.scale(self._one) < before

    def take_skipped(self) -> int:
        """How many steps were skipped since the last call."""
        if self._skipped is None:
            return 0
        count = int(self._skipped.item())
        self._skipped.zero_()
        return count

    def state(self) -> dict[str, float]:
        """The scale and how many steps have gone well at it; empty where it is off."""
        state = self._scaler.state_dict()
        return {name: state[name] for name in ("scale", "_growth_tracker") if name in state}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from what `state()` gave."""
        if self.enabled and state:
            self._scaler.load_state_dict({**self._scaler.state_dict(), **state})
