"""What both training stages share: optimisers, a learning rate that ends at zero on time, progress lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def optimisers(modules: nn.Module, muon_lr: float, adam_lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden weight matrices and AdamW for embeddings, norms, biases and heads."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and "layers." in name
        (matrices if hidden else others).append(parameter)
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        made.append(
            torch.optim.Muon(
                matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", ns_steps=4
            )
        )
    return made


class Clock:
    """How far a training is: by steps where `steps` is given, else by minutes (a shared machine has no steady pace)."""

    def __init__(self, minutes: float, steps: int | None) -> None:
        self.minutes, self.steps = minutes, steps
        self.began, self.step = time.monotonic(), 0

    @property
    def elapsed(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.began) / 60

    @property
    def progress(self) -> float:
        return self.step / self.steps if self.steps else self.elapsed / self.minutes

    def __iter__(self) -> Iterator[int]:
        while self.progress < 1:
            yield self.step
            self.step += 1


def train(
    clock: Clock,
    made: list[torch.optim.Optimizer],
    loss_of_step: Callable[[int], tuple[Tensor, dict[str, float]]],
    report: Callable[[int], None],
    parameters: list[nn.Parameter],
    warmup: int = 60,
    report_every: float = 4.0,
) -> None:
    """Run steps until the clock is up: linear warm-up, then linear decay to zero; report every few minutes."""
    peaks = [group["lr"] for o in made for group in o.param_groups]
    next_report, next_line = report_every, 0.0
    for step in clock:
        factor = min(1.0, (step + 1) / warmup) * max(0.02, 1 - clock.progress)
        for group, peak in zip((g for o in made for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * factor
        loss, parts = loss_of_step(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in made:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if clock.elapsed >= next_line:
            words = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
            print(f"step {step} {clock.elapsed:.1f} min loss {loss.item():.4f} {words}", flush=True)
            next_line = clock.elapsed + 0.25
        if clock.elapsed >= next_report:
            report(step)
            next_report = clock.elapsed + report_every
    report(clock.step)
