"""The encoder's stages on models and inputs out of the ordinary: what works is right, what cannot work is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Here, one_line
from torch import Tensor, nn

from tracker.codecs import finetune
from tracker.codecs.allocate import Allocate
from tracker.codecs.base import Context
from tracker.codecs.correct import Correct
from tracker.codecs.distill import Distill
from tracker.codecs.nnc import Nnc
from tracker.codecs.records import Judged
from tracker.codecs.round import Round
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.rate_distortion import training
from tracker.rate_distortion.inputs import made
from tracker.rate_distortion.sensitivity import sensitivities_on
from tracker.rate_distortion.training import Training


def context(model: nn.Module, inputs: Tensor, **more: Any) -> Context:
    known: dict[str, Any] = {"anchor": copy.deepcopy(model), "coder": Nnc(qp=-20), "state": state_tensors}
    return Context(lambda model, inputs: model(inputs), lambda: [inputs], 0, "cpu", **{**known, **more})


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def test_a_part_that_was_frozen_in_training_matters_as_much() -> None:
    model, inputs = perceptron(), torch.randn(64, 12)
    wanted = sensitivities_on("calibration", model, context(model, inputs))
    frozen = copy.deepcopy(model).requires_grad_(False)
    found = sensitivities_on("calibration", frozen, context(frozen, inputs))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) and len(found) == len(wanted)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


class Untold(nn.Module):
    """Outputs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 5)

    def forward(self, given: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(given)


def test_a_model_without_gradients_is_told_in_one_line_and_can_go_without() -> None:
    model, inputs = Untold().eval(), torch.randn(64, 12)
    own = context(model, inputs)
    with pytest.raises(TrackerError, match=r"no_grad.*inputs=none"):
        Allocate(price=0.0).apply(copy.deepcopy(model), own)
    assert set(Allocate(price=0.0, inputs="none").apply(copy.deepcopy(model), own).steps) == {"inner.weight"}


class Recommender(nn.Module):
    """Embeddings whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.scores = nn.Embedding(40, 12, sparse=True), nn.Linear(12, 3)

    def forward(self, given: Tensor) -> Tensor:
        return self.scores(self.items(given).sum(1))


def test_embeddings_with_sparse_gradients_are_measured_and_trained(cache: Path) -> None:
    torch.manual_seed(0)
    model, indices = Recommender().eval(), torch.randint(40, (64, 4))
    dense = copy.deepcopy(model)
    dense.items.sparse = False
    found, wanted = (sensitivities_on("calibration", one, context(one, indices)) for one in (model, dense))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) and found["items.weight"].any()
    own = context(model, indices, training=lambda: [indices], judge=lambda model: Judged(0.0, 0.0, 0.0))
    done = Distill(loss="mse", steps=4, rounds=1, batch_size=16).apply(copy.deepcopy(model), own)
    assert set(done.steps) > {"items.weight", "scores.weight"}


def test_where_layers_are_recurrent_cudnn_is_not_asked_for_gradients() -> None:
    before = torch.backends.cudnn.enabled
    for model, wanted in ((nn.Sequential(nn.LSTM(3, 4)), False), (perceptron(), before)):
        with finetune.repeatable(0, model):
            assert torch.backends.cudnn.enabled is wanted
        assert torch.backends.cudnn.enabled is before


class Padded(nn.Module):
    """A transformer of sequences that are padded on the right."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
        self.encoder, self.scores = nn.TransformerEncoder(layer, 2), nn.Linear(12, 3)

    def forward(self, given: Tensor) -> Tensor:
        padding = given.abs().sum(2) == 0
        return self.scores(self.encoder(given, src_key_padding_mask=padding)[:, 0])


def test_a_transformer_with_padding_is_rounded_and_corrected() -> None:
    torch.manual_seed(0)
    model, inputs = Padded().eval(), torch.randn(32, 6, 12)
    inputs[::2, 4:] = 0
    own = context(model, inputs, coder=Nnc(qp=-14), classes=1)
    rounded = Round().apply(copy.deepcopy(model), own)
    assert {"encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.1.linear2.weight"} <= set(rounded.exact)
    after = dataclasses.replace(own, steps=rounded.steps, exact=rounded.exact, dependent=rounded.dependent)
    corrected = Correct().apply(rounded.model, after).model
    assert not torch.equal(corrected.encoder.layers[0].linear1.bias, model.encoder.layers[0].linear1.bias)
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_were_pruned_before_are_not_corrected() -> None:
    torch.manual_seed(0)
    anchor = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pruned = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    own = context(pruned, torch.randn(8, 3, 12, 12), anchor=anchor, coder=Nnc(qp=-10, use_dq=False))
    done = Correct().apply(copy.deepcopy(pruned), own).model
    assert torch.equal(done[0].bias, pruned[0].bias) and not torch.equal(done[2].bias, pruned[2].bias)


def test_inputs_that_are_not_finite_are_left_out() -> None:
    model, inputs = perceptron(), torch.randn(256, 12)
    wanted = Round(follow=False).apply(copy.deepcopy(model), context(model, inputs)).model
    broken = torch.cat([inputs, torch.full((1, 12), torch.nan)])
    found = Round(follow=False).apply(copy.deepcopy(model), context(model, broken)).model
    # Moments are means over one vector more, of which the costs hardly take notice.
    same = (found[0].weight == wanted[0].weight).float().mean()
    assert bool(found[2].weight.isfinite().all()) and same > 0.95


def test_inputs_are_made_like_a_single_sample() -> None:
    model, sample = perceptron(), torch.randn(1, 12)
    found = made(context(model, sample), sample)
    assert bool(found.isfinite().all()) and torch.allclose(found.mean(0), sample[0], atol=2.0)


@pytest.mark.parametrize("options", [{"qp": -21.5}, {"qp_early": 1.0, "qp_late": -2.0}, {"qp_density": 0, "qp": -5}])
def test_step_sizes_of_every_density_go_through_a_chain(options: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    """What stages choose is coded as they chose it, at a finer density than the coder's where they need one."""
    model, inputs = perceptron(), torch.randn(64, 12)
    coder = Nnc(**{"nonweight_qp": -15, **options})
    own = context(model, inputs, coder=coder)
    wanted = coder.step_sizes(state_tensors(model))
    given = Allocate(price=1e-7).apply(copy.deepcopy(model), own)
    assert set(given.steps) == set(wanted)
    alone = Round().apply(copy.deepcopy(model), own)
    assert all(alone.steps[name] == wanted[name] for name in alone.dependent) and alone.dependent
    fine = {**alone.steps, "0.bias": 0.0009765625 * 1.25}  # of density 2 and finer ones
    after = dataclasses.replace(own, steps=fine, exact=alone.exact, dependent=alone.dependent)
    records = coder.encode(state_tensors(alone.model), tmp_path, alone.model, after)
    decoded = coder.receiver().decode(tmp_path)
    assert torch.equal(decoded["0.weight"], alone.model[0].weight.detach())
    assert {record.name: record.step_size for record in records} == fine
    with pytest.raises(TrackerError, match="NNC has no step of 0"):
        coder.encode(
            state_tensors(model), tmp_path, model, dataclasses.replace(own, steps={"0.bias": 0.123456789}, exact=())
        )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("+codec=nnc_fast", "codec.nnc.opt_qp=true"), "allocate chooses step sizes, which codec.nnc.opt_qp would"),
        (("+codec=[distill,nnc]", "codec.nnc.bitdepth=8"), "distill chooses step sizes, which codec.nnc.bitdepth"),
        (("+codec=[round,nnc]", "codec.nnc.sparsity=0.5"), "round chooses step sizes, which codec.nnc.sparsity would"),
        (("+codec=nnc_fast", "codec.round.dependent=true", "codec.nnc.use_dq=false"), "codec.round.dependent=true"),
        (("anchor=keras_digits", "+codec=[round,nnc]", "codec.round.dependent=true"), "is for PyTorch models"),
        (("+codec=[distill,nnc]", "codec.distill.crop=-8"), "codec.distill.crop=-8"),
        (("+codec=nnc_fast", "task.tolerance=inf"), "tolerance must be 0 or more, and finite"),
        (("+codec=nnc", "codec.nnc.qp=inf"), "codec.nnc.qp=inf"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(here: Here, words: tuple[str, ...], reason: str) -> None:
    one_line(here(*words), reason)


@pytest.mark.parametrize("images", [True, False])
def test_training_that_was_killed_ends_as_if_it_had_not_been(
    images: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same inputs, moved in the same way, in the same order: also in the middle of an epoch, and between rounds."""
    torch.manual_seed(0)
    if images:
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 5)).eval()
        batches = [torch.randn(20, 3, 8, 8) for _ in range(3)]
    else:
        model = perceptron()
        batches = [torch.randn(20, 12) for _ in range(3)]
    own = context(
        model,
        batches[0],
        coder=Nnc(qp=-40),
        training=lambda: batches,
        judge=lambda model: Judged(0.0, 1.0, 0.0),  # not so surely good that training would end at once
        classes=1 if images else None,
        agreement=lambda found, wanted: 1.0,
    )
    stage = Distill(batch_size=16, steps=40, rounds=2, learning_rate=0.01, rate_weight=1e4)
    whole = stage.apply(copy.deepcopy(model), own)
    assert whole.metrics["distill/round"] > 0  # it is a trained one that is compared
    plain, count, stops = Training._step, 0, [13, 30, 37]

    def step(self: Training, *words: Any) -> float:
        nonlocal count
        count += 1
        if stops and count > stops[0]:
            count = stops.pop(0)
            raise KeyboardInterrupt
        return plain(self, *words)

    monkeypatch.setattr(Training, "_step", step)
    monkeypatch.setattr(training, "SAVED", -1.0)  # after every step
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            stage.apply(copy.deepcopy(model), own)
    found = stage.apply(copy.deepcopy(model), own)
    assert not stops and found.steps == whole.steps
    for name, tensor in state_tensors(whole.model).items():
        assert torch.equal(state_tensors(found.model)[name], tensor), name
