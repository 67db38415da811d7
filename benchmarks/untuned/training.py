"""Seeded training of a PyTorch model, for the anchors here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

THREADS = 2  # sums are split over threads, so a fixed number gives the same values on any number of cores


def trained(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
    name: str,
    decay: float = 0.01,
) -> Mapping[str, Tensor]:
    """Train a new model; the caller's seeds and threads stay as they were.

    Args:
        build: makes the model.
        loss: of the model, on a batch that it draws with the generator.
        steps: of AdamW, with a rate that rises and falls once.
        rate: the largest learning rate.
        seed: of the first weights and of the batches.
        name: for the progress bar.
        decay: of weights.

    Returns:
        The state dict.
    """
    threads, began = torch.get_num_threads(), time.time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        try:
            model, generator = build().train(), torch.Generator().manual_seed(seed)
            optimiser: Any = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.1)
            with tqdm(range(steps), desc=f"train {name}", disable=None, leave=False) as bar:
                for _ in bar:
                    value = loss(model, generator)
                    optimiser.zero_grad()
                    value.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                    bar.set_postfix(
                        loss=f"{float(value.detach()):.3f}", seconds=f"{time.time() - began:.0f}", refresh=False
                    )
        finally:
            torch.set_num_threads(threads)
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
