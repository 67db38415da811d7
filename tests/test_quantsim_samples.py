"""Squares of large images, on which AIMET's optimisations work in place of the whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_quantsim import WORDS, Language, applied, context, distance, made, outputs
from torch import Tensor, nn

pytest.importorskip("aimet_torch")
from tracker.aimet import quantsim_samples
from tracker.aimet.base import Prepared
from tracker.aimet.quantsim_samples import samples
from tracker.codecs.quantsim import QuantSim
from tracker.errors import TrackerError


def numbered(count: int, height: int, width: int) -> Tensor:
    """Images of one channel whose values tell where a pixel is."""
    return torch.arange(count * height * width, dtype=torch.float32).view(count, 1, height, width)


def filter_network() -> nn.Module:
    """To images of the same size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def seen(batches: list[Tensor], folder: Path, model: nn.Module | None = None, **options: Any) -> list[Tensor]:
    prepared = Prepared(model or filter_network(), (batches[0][:1],), "")
    stage = QuantSim(bits=4, rounding="adaround", **options)
    return [images for (images,) in samples(stage, prepared, context(folder, batches))]


def test_large_images_are_seen_in_squares(tmp_path: Path) -> None:
    whole = numbered(1, 130, 200)
    given = [whole, whole + 1, numbered(1, 140, 128)]
    found = seen(given, tmp_path)
    assert {images.shape[1:] for images in found} == {(1, 64, 64)} and len({len(images) for images in found}) == 1
    squares = torch.cat(found)
    assert len(squares) == 16  # 6 of each of the first two and 4 of the third
    steps = squares - squares[:, :, :1, :1]
    places = torch.arange(64.0)[:, None] * 200 + torch.arange(64.0)
    other = torch.arange(64.0)[:, None] * 128 + torch.arange(64.0)
    cut = {(torch.equal(one[0], places), torch.equal(one[0], other)) for one in steps}
    assert cut == {(True, False), (False, True)}
    assert len({float(one[0, 0, 0]) for one in squares}) > 12  # at random places
    assert torch.equal(squares, torch.cat(seen(given, tmp_path)))


def test_where_images_are_small_or_outputs_are_none_they_are_seen_whole(tmp_path: Path) -> None:
    classifier = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for batches, model in (
        ([numbered(2, 100, 200)] * 2, None),  # less than two squares high
        ([numbered(2, 200, 200)] * 2, classifier),
    ):
        assert [images.shape for images in seen(batches, tmp_path, model)] == [batches[0].shape] * 2
    given = [numbered(2, 200, 200), numbered(1, 200, 200)]
    assert [images.shape for images in seen(given, tmp_path, crop=None)] == [(2, 1, 200, 200)]


def test_a_side_of_the_users_own_and_no_more_places_than_memory_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [numbered(2, 20, 30)]
    assert [images.shape for images in seen(given, tmp_path, crop=10)] == [(12, 1, 10, 10)]
    assert [images.shape for images in seen(given, tmp_path, crop=25)] == [(2, 1, 20, 25)]
    monkeypatch.setattr(quantsim_samples, "PLACES", 700)  # three of two squares of 100 places
    assert [images.shape for images in seen(given, tmp_path, crop=10)] == [(6, 1, 10, 10)]
    with pytest.raises(TrackerError, match=r"codec\.quantsim\.crop is for models whose input is one tensor"):
        applied(QuantSim(bits=4, rounding="adaround", crop=4), made(Language), tmp_path / "words", WORDS)


def test_squares_serve_whole_images(tmp_path: Path) -> None:
    """AdaRound on squares of some images, judged on others: closer to the network than rounding to the nearest."""
    generator = torch.Generator().manual_seed(1)
    images = [nn.functional.avg_pool2d(torch.randn(1, 1, 260, 260, generator=generator), 3, 1) for _ in range(3)]
    before = outputs(filter_network(), images[2])
    errors = {}
    for rounding, options in {"nearest": {}, "adaround": {"adaround_iterations": 200}}.items():
        stage = QuantSim(bits=4, rounding=rounding, per_channel=False, **options)
        model = applied(stage, filter_network(), tmp_path / rounding, images[:2]).model
        errors[rounding] = distance(outputs(model, images[2]), before)
    assert errors["adaround"] < 0.8 * errors["nearest"]
