"""Keras models in PyTorch: outputs and gradients of each layer, and the stages that work on them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, runs
from nncodec import nnc
from torch import nn

from tracker.anchors.keras_base import KerasAnchor
from tracker.codecs.allocate import Allocate
from tracker.codecs.base import Context
from tracker.codecs.chain import Codec
from tracker.codecs.correct import Correct
from tracker.codecs.distill import Distill
from tracker.codecs.nnc import Nnc
from tracker.codecs.records import Transformed
from tracker.codecs.round import Round
from tracker.errors import TrackerError
from tracker.frameworks.keras import FRAMEWORK, load
from tracker.rate_distortion.twin import Studio
from tracker.scenarios.aiming import is_bold, pivot
from tracker.scenarios.draft import Workshop
from tracker.settings import Aim

pytest.importorskip("tensorflow")
SHORT = ("codec.distill.steps=40", "codec.distill.rounds=1")


def filled(model: Any) -> Any:
    """Random values in all weights."""
    draw = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in variable.dtype:
            positive = "variance" in variable.name
            variable.assign(draw.uniform(0.5 if positive else -0.5, 1.5 if positive else 0.5, variable.shape))
    return model


def twin(model: Any, apart: bool = True) -> Any:
    from tracker.frameworks.keras_torch import Twin

    return Twin(model, apart).eval()


def foreign(module: nn.Module) -> int:
    from tracker.frameworks.keras_foreign import Foreign

    return sum(isinstance(part, Foreign) for part in module.modules())


def same(model: Any, given: Any, found: Any) -> bool:
    """Whether a twin's outputs are Keras's own."""
    wanted = np.asarray(model(given, training=False))
    return np.allclose(wanted, found.detach().numpy(), atol=1e-4 * max(1.0, np.abs(wanted).max()))


PLANE, LINE, SPACE, VECTOR = (9, 8, 4), (11, 4), (6, 5, 4, 4), (6,)


def kinds() -> list[tuple[tuple[int, ...], Callable[[Any], Any]]]:
    """The shape of an input, and a layer that PyTorch has."""
    layers = load().layers
    found: list[tuple[tuple[int, ...], Callable[[Any], Any]]] = [
        (VECTOR, layers.Dense(5, activation="gelu")),
        (PLANE, layers.Dense(5, use_bias=False, activation="leaky_relu")),
        (VECTOR, layers.BatchNormalization(epsilon=1e-2)),
        (PLANE, layers.BatchNormalization(scale=False)),
        (SPACE, layers.BatchNormalization(center=False, scale=False)),
        (PLANE, layers.LayerNormalization()),
        (PLANE, layers.LayerNormalization(center=False, epsilon=0.1)),
        (PLANE, layers.ReLU(max_value=0.3, negative_slope=0.1)),
        (PLANE, layers.LeakyReLU(0.2)),
        (PLANE, layers.Softmax()),
        (PLANE, layers.Flatten()),
        (PLANE, layers.Reshape((-1, 6))),
        (PLANE, layers.Permute((2, 3, 1))),
        (PLANE, layers.Rescaling(0.5, -1.0)),
        (PLANE, layers.UpSampling2D((2, 3))),
        (PLANE, layers.ZeroPadding2D(((1, 2), (0, 3)))),
        (LINE, layers.ZeroPadding1D((2, 1))),
        (PLANE, layers.GlobalAveragePooling2D(keepdims=True)),
        (LINE, layers.GlobalMaxPooling1D()),
        (PLANE, layers.AveragePooling2D(3, 1, "same")),
        (SPACE, layers.AveragePooling3D(2)),
        (LINE, layers.MaxPooling1D(3, 2, "same")),
        (PLANE, layers.MaxPooling2D((2, 3), padding="same")),
        (PLANE, layers.Dropout(0.5)),
        (LINE, layers.Conv1D(5, 3, padding="causal", dilation_rate=2)),
        (SPACE, layers.Conv3D(3, 2, strides=2, padding="same")),
        (PLANE, layers.SeparableConv2D(6, 3, depth_multiplier=2, strides=2, padding="same")),
        (PLANE, lambda x: x * 2.0 + (1.0 - x) / 4.0),
        (PLANE, lambda x: layers.Concatenate(axis=1)([layers.Add()([x, x, x]), layers.Multiply()([x, x])])),
        (PLANE, lambda x: layers.Maximum()([layers.Subtract()([x, x * 0.5]), layers.Minimum()([x, -1.0 * x])])),
    ]
    for size, stride, padding in (
        (3, 1, "same"),
        (3, 2, "same"),
        (4, 1, "same"),
        ((2, 5), (3, 2), "same"),
        (3, 2, "valid"),
    ):
        found.append((PLANE, layers.Conv2D(6, size, stride, padding, activation="relu")))
    found += [(PLANE, layers.DepthwiseConv2D(3, s, "same", depth_multiplier=2)) for s in (1, 2)]
    found += [(PLANE, layers.Activation(name)) for name in ("sigmoid", "hard_sigmoid", "silu", "hard_silu", "softmax")]
    found += [(PLANE, layers.Activation(name)) for name in ("relu6", "elu", "selu", "softplus", "mish", "exponential")]
    return found


def test_layers_of_pytorch_give_what_keras_gives() -> None:
    keras = load()
    for shape, layer in kinds():
        inputs = keras.Input(shape)
        model = filled(keras.Model(inputs, layer(inputs)))
        made = twin(model)
        assert foreign(made) == 0, layer
        given = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        assert same(model, given.numpy(), made(given)), (layer, shape)
        state = FRAMEWORK.state(model, ())
        assert list(made.give()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in made.give().items())


def mixture() -> Any:
    """Layers that PyTorch has and others, one that is used twice, a nested model and a layer that nothing calls."""
    keras = load()
    layers = keras.layers
    tokens, plane = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((8, 8, 2), name="plane")
    shared = layers.Conv2D(4, 3, padding="same", activation="tanh")
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.BatchNormalization(), layers.Conv2DTranspose(3, 2)])
    planes = layers.Average()([inner(shared(plane)), inner(shared(-1.0 * plane))])
    sequence = layers.LSTM(6)(layers.Embedding(20, 4)(tokens))
    joined = layers.Concatenate()([keras.ops.mean(planes, axis=(1, 2)), sequence[:, ::2]])
    return keras.Model({"tokens": tokens, "plane": plane}, {"out": layers.Dense(3)(joined), "more": joined})


def mixed_inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    plane = torch.randn(4, 8, 8, 2, generator=draw)
    return {"tokens": torch.randint(0, 20, (4, 5), generator=draw, dtype=torch.int32), "plane": plane}


def test_a_graph_of_both_kinds_of_layers_has_the_outputs_and_the_gradients_of_the_whole() -> None:
    """Autograd of PyTorch through single layers against TensorFlow's through the whole model."""
    model, inputs = filled(mixture()), mixed_inputs()
    parts, whole = twin(model), twin(model, apart=False)
    assert foreign(parts) > 1 and foreign(whole) == 1
    gradients = []
    for made in (parts, whole, copy.deepcopy(parts)):
        found = made(inputs)
        assert same(lambda given, training: model(given, training=training)["out"], inputs, found["out"])
        (found["out"].square().sum() + found["more"].sum()).backward()
        own = {made.names[name]: parameter.grad for name, parameter in made.named_parameters()}
        gradients.append(own)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 12
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-4), name
        assert torch.equal(gradient, gradients[2][name])


def test_values_go_there_and_back() -> None:
    model, inputs = filled(mixture()), mixed_inputs()
    made = twin(model)
    with torch.no_grad():
        for tensor in made.state().values():
            if tensor.is_floating_point():
                tensor.mul_(0.5).add_(0.1)
    FRAMEWORK.fill(model, made.give(), "the tensors of the twin")
    assert same(lambda given, training: model(given, training=training)["out"], inputs, made(inputs)["out"])
    other = twin(filled(mixture()))
    other.take(FRAMEWORK.state(model, ()))
    assert torch.equal(other(inputs)["out"], made(inputs)["out"])


def test_a_weight_of_two_layers_is_one_parameter() -> None:
    keras = load()

    class Tied(keras.layers.Layer):
        def __init__(self, embedding: Any) -> None:
            super().__init__()
            self.embedding = embedding

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))

    inputs = keras.Input((3,), dtype="int32")
    embedding = keras.layers.Embedding(7, 4)
    model = filled(keras.Model(inputs, Tied(embedding)(embedding(inputs))))
    made = twin(model)
    parameters = list(made.parameters())
    assert len(parameters) == 1 and foreign(made) == 1
    with torch.no_grad():
        parameters[0].mul_(2)
    FRAMEWORK.fill(model, made.give(), "the tensors of the twin")
    given = torch.tensor([[1, 2, 6], [0, 3, 3]])
    assert same(model, given.numpy(), made(given))


def test_masks_and_code_of_ones_own_run_on_tensorflow() -> None:
    keras = load()
    layers = keras.layers

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = layers.BatchNormalization(), layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.last(self.norm(x, training=training))

    class Twice(layers.Dense):
        def call(self, x: Any) -> Any:
            return 2 * super().call(x)

    own = Own()
    own(np.zeros((1, 6), np.float32))
    masked = keras.Sequential(
        [keras.Input((7,)), layers.Embedding(9, 4, mask_zero=True), layers.GRU(5), layers.Dense(3)]
    )
    always = keras.Input((6,))
    dropped = keras.Model(always, layers.Dense(3)(Twice(4)(always)))
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0]])
    for model, given in ((own, torch.randn(5, 6)), (masked, tokens), (dropped, torch.randn(5, 6))):
        made = twin(filled(model))
        assert foreign(made) == 1 and same(model, given.numpy(), made(given))


def small(ending: str | None = None) -> Any:
    keras = load()
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(4, activation=ending),
        ]
    )


def context(model: Any, predict: Any = None, **more: Any) -> Context:
    torch.manual_seed(2)
    batches = [torch.randn(32, 8, 8, 3) for _ in range(3)]

    class Anchor(KerasAnchor):
        def build(self) -> Any: ...

        def weights(self) -> Any: ...

    known = {
        "anchor": FRAMEWORK.copy(model),
        "coder": Nnc(qp=-6),
        "state": lambda model: FRAMEWORK.state(model, ()),
        "classes": 1,
        "framework": "keras",
        "training": lambda: batches,
    }
    own = predict or Anchor(name="anchor").predict
    return Context(own, lambda: batches, 0, "cpu", **{**known, **more})


def test_inside_channels_come_second_and_probabilities_are_logits() -> None:
    model = filled(small("softmax"))
    outside = context(model)
    studio = Studio(Round(), model, outside)
    first, moved = next(iter(outside.training())), next(iter(studio.inside.training()))
    assert torch.equal(moved, first.permute(0, 3, 1, 2))
    wanted = outside.predict(model, first)
    found = studio.inside.predict(studio.twin, moved)
    assert torch.allclose(found.softmax(1), wanted, atol=1e-5) and bool((found < -0.1).any())
    logits = context(filled(small()))
    assert not Studio(Round(), logits.anchor, logits).probabilities
    # What the model was before it was rounded is there as a twin too, where a stage begins from it.
    rounded = filled(small("softmax"))
    rounded.set_weights([np.round(values) for values in model.get_weights()])
    inside = Studio(Distill(), rounded, dataclasses.replace(outside, unrounded=model)).inside
    before = Studio(Round(), model, outside).twin.state()
    assert all(torch.equal(inside.unrounded.state()[name], values) for name, values in before.items())
    assert Studio(Round(), rounded, dataclasses.replace(outside, unrounded=model)).inside.unrounded is None


def test_how_far_classes_are_from_the_anchors_is_their_divergence() -> None:
    """From what it is, training begins at the same divergence as that of PyTorch's models."""
    model = filled(small("softmax"))
    outside = context(model)
    changed = FRAMEWORK.copy(model)
    changed.set_weights([0.8 * values for values in model.get_weights()])
    inputs = torch.cat(list(outside.calibration())).numpy()
    before, after = (np.asarray(one(inputs), dtype=np.float64) for one in (model, changed))
    wanted = (before * np.log(before / after)).sum(1).mean()
    assert Distill().divergence(changed, outside) == pytest.approx(wanted, rel=1e-3)
    (coder, stage), aim = (Nnc(), Distill()), Aim(drop=0.01)
    codec = Codec({"allocate": Allocate(), "distill": stage}, "nnc", coder)
    found = pivot(codec, aim)
    assert found is not None and is_bold(codec, found, Workshop(FRAMEWORK, outside, Path()))


def test_rounded_and_corrected_weights_are_nearer_to_the_anchor_than_to_nearest() -> None:
    model = filled(small())
    outside = context(model)
    steps = dict(outside.coder.step_sizes(outside.state(model)))
    inputs = torch.cat(list(outside.calibration()))

    def error(changed: Any) -> float:
        return float((outside.predict(changed, inputs) - outside.predict(outside.anchor, inputs)).square().mean())

    nearest = FRAMEWORK.copy(model)
    coded = {
        name: (tensor / steps[name]).round() * steps[name] if tensor.ndim > 1 else tensor
        for name, tensor in outside.state(model).items()
    }
    FRAMEWORK.fill(nearest, coded, "the rounded tensors")
    given = Round(rate_weight=0).apply(FRAMEWORK.copy(model), outside)
    assert isinstance(given, Transformed) and given.steps == steps and given.exact
    for name in ("conv2d/kernel", "dense/kernel"):
        scaled = outside.state(given.model)[name] / steps[name]
        assert torch.allclose(scaled, scaled.round(), atol=1e-3)
    after = Correct().apply(FRAMEWORK.copy(given.model), context(model, steps=given.steps, exact=given.exact))
    assert error(after.model) < error(nearest) / 2
    changed, before = outside.state(after.model), outside.state(given.model)
    assert torch.equal(changed["conv2d/kernel"], before["conv2d/kernel"])
    assert not torch.equal(changed["dense/bias"], before["dense/bias"])


def test_a_predict_that_pytorch_cannot_follow_is_refused_in_one_line() -> None:
    model = filled(small())
    plain = context(model).predict

    def own(model: Any, inputs: Any) -> torch.Tensor:
        return plain(model, inputs) if isinstance(model, load().Model) else plain(model, inputs) + 1

    with pytest.raises(TrackerError, match=r"codec\.Round computes in PyTorch.*its outputs are others there"):
        Round().apply(model, context(model, own))


@pytest.mark.slow
def test_the_presets_are_smaller_than_nnc_and_transparent(here: Here, ready: Path) -> None:
    sure = "target.confidence=0.99"  # two splits of 400 images differ by much
    for words in (
        ("+codec=nnc", "target.drop=0.005"),
        ("+codec=nnc_fast", sure),
        ("+codec=nnc_calibrated", *SHORT, sure),
    ):
        done = here("anchor=keras_digits", *words, "tracking.evaluate_stages=false")
        assert done.returncode == 0, done.stderr
    plain, fast, distilled = runs(ready, "compression")
    size = plain.data.metrics["size/bitstream_bytes"]
    assert fast.data.metrics["size/bitstream_bytes"] < 0.7 * size
    assert distilled.data.metrics["size/bitstream_bytes"] < 0.7 * size
    for run in (fast, distilled):
        assert round(400 * abs(run.data.metrics["performance/drop"])) <= 4  # answers of the report split
    folder = ready / "mlruns" / "artifacts" / fast.info.run_id / "artifacts"
    rows = (folder / "stages" / "allocate" / "steps.json").read_text()
    assert "batch_normalization/gamma" in rows

    from tracker.bitstream import decode_bitstream

    alone = nnc.decompress(bytearray((folder / "bitstream" / "model.nnc").read_bytes()), reconstruct_lsa=True)
    ours = decode_bitstream(folder / "bitstream")
    assert "conv2d/kernel" in alone
    assert all(np.array_equal(array, ours[name].numpy()) for name, array in alone.items())
