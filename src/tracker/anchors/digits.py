"""The default anchor: a small convolutional network trained in seconds on scikit-learn's digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tracker.anchors.base import Anchor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class Digits(Anchor):
    """Three convolutions with batch normalisation and a linear layer, for 8x8 images and 10 classes.

    It is trained once on the training split of `tracker.data.digits` and kept in the cache.
    """

    width: int = Field(default=32, ge=4, le=512, description="channels of the first convolution; the next have twice")
    epochs: int = Field(default=12, ge=1, le=1000)
    seed: int = Field(default=0, ge=0)

    def build(self) -> torch.nn.Module:
        """The network; input (N, 1, 8, 8), output logits (N, 10)."""
        from torch import nn

        def block(into: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

        width = self.width
        return nn.Sequential(
            *block(1, width),
            *block(width, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The trained weights, from the cache or after training (seconds on one core)."""
        from tracker.cache import cached_tensors

        key = f"digits-w{self.width}-e{self.epochs}-s{self.seed}"
        return cached_tensors(key, self._train)

    def _train(self) -> Mapping[str, torch.Tensor]:
        import torch
        from torch import nn
        from tqdm import tqdm

        from tracker.data.digits import Digits as DigitsData

        # Seeds and threads are put back, so that training here changes nothing for whoever called.
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            torch.set_num_threads(1)  # sums are split over threads, so one thread gives the same bits everywhere
            try:
                model = self.build()
                images, labels = DigitsData().arrays("training")
                optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
                steps = self.epochs * -(-len(images) // 64)
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=steps)
                for _ in tqdm(range(self.epochs), desc="train digits", disable=None, leave=False):
                    for batch in torch.randperm(len(images)).split(64):
                        # Shifts by up to one pixel: the set is small, and this takes the network to about 99 %.
                        dy, dx = (int(v) for v in torch.randint(-1, 2, (2,)))
                        shifted = images[batch].roll((dy, dx), dims=(2, 3))
                        loss = nn.functional.cross_entropy(model(shifted), labels[batch])
                        optimiser.zero_grad()
                        loss.backward()
                        optimiser.step()
                        schedule.step()
            finally:
                torch.set_num_threads(threads)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
