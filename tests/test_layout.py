"""Images are given to models with channels last where that changes nothing, and as they are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Here, runs
from safetensors.torch import save_file
from torch import Tensor, nn

from tracker.anchors.base import Anchor
from tracker.data.base import Decoded
from tracker.evaluation import Batches, evaluate, settle_layout
from tracker.frameworks import layout
from tracker.tasks.classification import Classification

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Flattened(nn.Module):
    """Flattens as many networks of 2015 do: only what is contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)[:, :4]


class Strided(nn.Module):
    """Does something else for another layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * x.stride(1)


class Noted(nn.Module):
    """Notes whether its input has channels last."""

    seen: list[bool]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mean((2, 3))


LAYERS: dict[str, type[nn.Module]] = {"flattened": Flattened, "strided": Strided, "noted": Noted}


class Small(Anchor):
    """A convolution and one of those."""

    last: str

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), LAYERS[self.last]()).eval()

    def weights(self) -> Mapping[str, Tensor]:
        return self.build().state_dict()


def batches(anchor: Anchor, images: Any = IMAGES) -> Batches:
    samples = Decoded(range(len(images)), lambda index: (images[index], index % 4))
    return Batches(samples, anchor, Classification(name="c", batch_size=3))


@pytest.mark.parametrize("last, taken", [("flattened", False), ("strided", False), ("noted", True)])
def test_it_is_taken_where_it_changes_nothing(last: str, taken: bool) -> None:
    Noted.seen = []
    anchor = Small(name="small", last=last)
    model = anchor.build()
    given = batches(anchor)
    before = evaluate(anchor, model, given.task, given, "cpu", "evaluate")
    settle_layout(anchor, model, given, "cpu")
    assert anchor.images_channels_last is taken
    Noted.seen = []
    after = evaluate(anchor, model, given.task, given, "cpu", "evaluate")
    assert after.metrics == before.metrics
    assert Noted.seen == ([True, True] if taken else [])
    outputs = layout.predict(anchor, model, IMAGES)
    assert torch.allclose(outputs, anchor.predict(model, IMAGES.clone()), atol=1e-5)


def test_images_of_several_sizes_and_none_at_all() -> None:
    Noted.seen = []
    anchor = Small(name="small", last="noted")
    settle_layout(anchor, anchor.build(), batches(anchor, [torch.randn(3, 8, 8), torch.randn(3, 9, 7)]), "cpu")
    assert anchor.images_channels_last
    for other in ([torch.randn(3)], [torch.randn(2, 8, 8)], ["no image"]):  # nothing to lay out, or nothing that runs
        settle_layout(anchor, anchor.build(), batches(anchor, other), "cpu")
        assert not anchor.images_channels_last


def test_gradients_reach_the_inputs() -> None:
    Noted.seen = []
    anchor = Small(name="small", last="noted")
    model = anchor.build()
    anchor.remember_layout(True)
    inputs = IMAGES.clone().requires_grad_(True)
    layout.predict(anchor, model, inputs).square().sum().backward()
    plain = IMAGES.clone().requires_grad_(True)
    anchor.predict(model, plain).square().sum().backward()
    assert inputs.grad is not None and plain.grad is not None
    assert Noted.seen == [True, False]
    assert torch.allclose(inputs.grad, plain.grad, atol=1e-6)


def test_a_run_gives_images_that_way_to_its_models_and_its_stages(here: Here, ready: Path) -> None:
    """Whether or not the anchor is evaluated before its codec: a second run finds it, and gives the same bytes."""
    Noted.seen = []
    save_file({"inputs": torch.randn(20, 3, 8, 8), "targets": torch.arange(20) % 4}, ready / "images.safetensors")
    folder = ready / "own" / "anchor"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(f"_target_: {__name__}.Small\nname: small\nlast: noted\n")
    words = ["--config-dir", str(ready / "own"), "anchor=small", "data=arrays", "task=classification"]
    words += [f"data.path={ready / 'images.safetensors'}", "+codec=[allocate,round,nnc]", "task.tolerance=0.5"]
    digests = []
    for _ in range(2):
        Noted.seen = []
        ended = here(*words)
        assert ended.returncode == 0, ended
        (run,) = [one for one in runs(ready) if one.data.tags["tracker.kind"] == "compression"][:1]
        digests.append(run.data.tags["tracker.bitstream.sha256"])
        first, *rest = Noted.seen  # the first is what it is compared with
        assert not first and sum(rest) > len(rest) - 3  # one more: what MLflow's model is described by
    assert digests[0] == digests[1]
