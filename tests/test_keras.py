"""Anchors of Keras: layouts, files, MLflow's models, bad input, and TensorFlow beside PyTorch in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Completed, one_line, runs
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tracker.errors import TrackerError
from tracker.frameworks.keras import FRAMEWORK, load
from tracker.frameworks.keras_names import layers_by_name

pytest.importorskip("tensorflow")

MODELS = """
import keras
from keras import layers

class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(4, 3)
        self.rest = [layers.Dense(5), layers.Dense(10)]

    def call(self, x):
        x = keras.ops.mean(self.first(x), axis=(1, 2))
        for layer in self.rest:
            x = layer(x)
        return x

def build(width=4):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, padding="same", activation="relu")(inputs)
    x = x + layers.Conv2D(width, 3, padding="same")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))

def own():
    model = Own()
    model(keras.ops.zeros((1, 8, 8, 1)))
    return model

def custom(extra):
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(extra(inputs))))

def not_built():
    return keras.Sequential([layers.Dense(10)])

def image():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, inputs + layers.Conv2D(3, 3, padding="same", kernel_initializer="zeros")(inputs))
"""
WITHOUT = """
import sys
sys.modules["tensorflow"] = None
sys.argv = ["tracker", *sys.argv[1:]]
from tracker.__main__ import leave, main
leave(main())
"""


def python(code: str, *words: str, cwd: Path, **environment: str) -> Completed:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def filled(build: Callable[[], Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model with random values in all weights, and its tensors."""
    model = build()
    draw = np.random.default_rng(0)
    for variable in model.weights:
        positive = "variance" in variable.name
        variable.assign(draw.uniform(0.5 if positive else -0.5, 1.5 if positive else 0.5, variable.shape))
    return model, FRAMEWORK.state(model, ())


def same(keras_output: Any, torch_output: torch.Tensor) -> bool:
    return np.allclose(np.asarray(keras_output), torch_output.detach().numpy(), atol=1e-4)


def test_kernels_are_those_of_pytorch() -> None:
    keras = load()
    layers, functional = keras.layers, nn.functional
    draw = torch.Generator().manual_seed(0)
    line, plane, space = (torch.rand(2, 3, *[7] * n, generator=draw) for n in (1, 2, 3))

    def last(x: torch.Tensor) -> np.ndarray:
        return x.movedim(1, -1).numpy()

    def check(layer: Any, x: torch.Tensor, compute: Callable[..., torch.Tensor], moved: bool = True) -> None:
        given = last(x) if moved else x.numpy()
        model, state = filled(lambda: keras.Sequential([keras.Input(given.shape[1:]), layer]))
        tensors = [value for name, value in state.items() if name.count("/") >= 1]
        expected = compute(x, *tensors)
        assert same(model(given), expected.movedim(1, -1) if moved else expected), layer
        FRAMEWORK.fill(model, state, "the tensors")  # and back
        assert all(torch.equal(value, state[name]) for name, value in FRAMEWORK.state(model, ()).items())

    check(layers.Conv1D(5, 3), line, functional.conv1d)
    check(layers.Conv2D(5, (3, 2)), plane, functional.conv2d)
    check(layers.Conv2D(6, 3, groups=3), plane, lambda x, w, b: functional.conv2d(x, w, b, groups=3))
    check(layers.Conv3D(5, 3), space, functional.conv3d)
    for multiplier in (1, 2):
        check(
            layers.DepthwiseConv2D(3, depth_multiplier=multiplier),
            plane,
            lambda x, w, b: functional.conv2d(x, w, b, groups=3),
        )
    check(layers.DepthwiseConv1D(3), line, lambda x, w, b: functional.conv1d(x, w, b, groups=3))
    check(
        layers.SeparableConv2D(5, 3, depth_multiplier=2),
        plane,
        lambda x, d, p, b: functional.conv2d(functional.conv2d(x, d, groups=3), p, b),
    )
    check(
        layers.Conv2DTranspose(5, (3, 2)),
        plane,
        lambda x, w, b: functional.conv_transpose2d(x, w.transpose(0, 1), b),
    )
    check(layers.Conv1DTranspose(5, 3), line, lambda x, w, b: functional.conv_transpose1d(x, w.transpose(0, 1), b))
    flat = torch.rand(2, 7, generator=draw)
    check(layers.Dense(5), flat, functional.linear, moved=False)
    row = torch.rand(2, 4, 7, generator=draw)
    check(layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"), row, functional.linear, moved=False)
    check(
        layers.EinsumDense("abc,cde->abde", (None, 5, 2)),
        row,
        lambda x, w: torch.einsum("abc,dec->abde", x, w),
        moved=False,
    )
    check(layers.BatchNormalization(epsilon=1e-5), plane, lambda x, g, b, m, v: functional.batch_norm(x, m, v, g, b))


def test_recurrent_kernels_are_those_of_pytorch() -> None:
    keras = load()
    x = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0))
    model, state = filled(lambda: keras.Sequential([keras.Input((4, 7)), keras.layers.LSTM(5, return_sequences=True)]))
    kernel, recurrent, bias = state.values()
    lstm = nn.LSTM(7, 5, batch_first=True)  # gates in the order input, forget, cell, output, as Keras has them
    lstm.load_state_dict(
        {"weight_ih_l0": kernel, "weight_hh_l0": recurrent, "bias_ih_l0": bias, "bias_hh_l0": torch.zeros(20)}
    )
    assert same(model(x.numpy()), lstm(x)[0])
    for layer in (keras.layers.GRU(5), keras.layers.Bidirectional(keras.layers.GRU(5)), keras.layers.SimpleRNN(5)):
        _, state = filled(lambda layer=layer: keras.Sequential([keras.Input((4, 7)), layer]))
        kernels = [tensor for name, tensor in state.items() if name.endswith("kernel")]
        assert kernels and all(kernel.shape[0] % 5 == 0 and kernel.shape[1] in (5, 7) for kernel in kernels)


def test_names_are_unique_and_the_same_each_time() -> None:
    keras = load()

    def build() -> Any:
        inputs = keras.Input((6, 8))
        attention = keras.layers.MultiHeadAttention(2, 4)
        x = keras.layers.Dropout(0.5, seed=1)(attention(inputs, inputs))
        inner = keras.Sequential([keras.Input((6, 8)), keras.layers.Dense(8), keras.layers.Dense(8, name="last_7")])
        x = keras.layers.Dense(8)(inner(x)) + keras.layers.Dense(8)(inner(x))
        return keras.Model(inputs, keras.layers.Embedding(4, 3)(keras.ops.cast(x > 0, "int32")))

    first, second = build(), build()
    assert FRAMEWORK.layers(first) == {"EinsumDense": 4, "Dense": 4, "Embedding": 1}
    names = FRAMEWORK.state(first, ())
    assert list(names) == list(FRAMEWORK.state(second, ()))
    assert len(names) == len(first.weights)
    assert {"dense/kernel", "dense_1/kernel", "sequential/last_7/kernel", "embedding/embeddings"} <= names.keys()
    assert FRAMEWORK.describe(first) == FRAMEWORK.describe(second)
    assert all("seed" not in name for name in names)
    assert list(layers_by_name(FRAMEWORK.copy(first))) == list(layers_by_name(first))
    activation = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation=a)]) for a in ("relu", "tanh")]
    copies = [FRAMEWORK.copy(first) for _ in range(2)]
    assert FRAMEWORK.describe(copies[0]) == FRAMEWORK.describe(copies[1])
    assert FRAMEWORK.describe(activation[0]) != FRAMEWORK.describe(activation[1])


def test_a_normalisation_computes_with_the_values_that_it_was_filled_with() -> None:
    keras = load()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Normalization()(inputs))
    values = {"mean": torch.tensor([1.0, 2.0, 3.0]), "variance": torch.tensor([4.0, 9.0, 16.0])}
    state = {
        name: values.get(name.rpartition("/")[2], tensor).view_as(tensor)
        for name, tensor in FRAMEWORK.state(model, ()).items()
    }
    FRAMEWORK.fill(model, state, "the tensors")
    given = torch.randn(5, 3)
    for filled_one in (model, FRAMEWORK.copy(model)):
        assert same(filled_one(given.numpy()), (given - values["mean"]) / values["variance"].sqrt())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "mixed_float16", "mixed_bfloat16"])
def test_every_floating_point_type_survives(dtype: str) -> None:
    keras = load()
    kwargs = {"dtype": keras.dtype_policies.DTypePolicy(dtype)}
    model, state = filled(lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, **kwargs)]))
    wanted = torch.float32 if "mixed" in dtype else getattr(torch, dtype)
    assert all(tensor.dtype == wanted for tensor in state.values())
    twin = FRAMEWORK.copy(model)
    FRAMEWORK.fill(twin, state, "the tensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in FRAMEWORK.state(twin, ()).items())
    twin.weights[0].assign(np.zeros((4, 3)))  # a copy shares nothing
    assert all(torch.equal(tensor, state[name]) for name, tensor in FRAMEWORK.state(model, ()).items())


def test_what_does_not_fit_is_refused() -> None:
    keras = load()
    model, state = filled(lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    kernel = state["dense/kernel"]
    for wrong, told in (
        ({"dense/kernel": kernel}, "1 missing, such as dense/bias"),
        ({**state, "more": kernel}, "1 unexpected, such as more"),
        ({**state, "dense/kernel": kernel.T}, r"dense/kernel is \(4, 3\), but the model has \(3, 4\)"),
    ):
        with pytest.raises(TrackerError, match=told):
            FRAMEWORK.fill(model, wrong, "the tensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keras models as files, good and bad, and the module that they come from."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "my_keras.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    keras = load()
    import my_keras

    model = my_keras.build()
    model.save(folder / "good.keras")
    model.save_weights(folder / "good.weights.h5")
    my_keras.build(5).save_weights(folder / "other.weights.h5")
    my_keras.own().save_weights(folder / "own.weights.h5")
    my_keras.custom(keras.layers.Lambda(lambda x: 2 * x)).save(folder / "lambda.keras")
    my_keras.custom(my_keras.Twice()).save(folder / "custom.keras")
    my_keras.image().save(folder / "image.keras")
    raw = (folder / "good.keras").read_bytes()
    (folder / "cut.keras").write_bytes(raw[: len(raw) // 2])
    (folder / "text.keras").write_text("no model")
    weights = (folder / "good.weights.h5").read_bytes()
    (folder / "cut.weights.h5").write_bytes(weights[: len(weights) // 2])
    (folder / "legacy.h5").write_bytes(weights)
    sys.path.remove(str(folder))
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A tracking folder after nnc and all plain coders on keras_digits."""
    folder = tmp_path_factory.mktemp("swept")
    words = ["-m", "anchor=keras_digits", "+codec=nnc,zstd,fp16,bf16,int8,int4"]
    done = subprocess.run(
        [sys.executable, "-m", "tracker", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_nnc_and_all_plain_coders_work(swept: Path) -> None:
    (anchor,) = runs(swept, "anchor")
    assert anchor.data.metrics["performance/anchor"] > 0.97
    found = {run.data.tags["tracker.codec"]: run for run in runs(swept, "compression")}
    assert found.keys() == {"nnc", "zstd", "fp16", "bf16", "int8", "int4"}
    assert found["zstd"].data.metrics["performance/drop"] == 0
    drops = {name: run.data.metrics["performance/drop"] for name, run in found.items()}
    assert all(abs(drop) < 0.03 for drop in drops.values()), drops
    assert found["nnc"].data.metrics["size/rate_percent"] < 25
    assert (swept / "stderr").read_text() == ""  # nothing of TensorFlow's


def test_the_decoded_model_is_a_model_of_keras_with_the_bitstreams_values(swept: Path) -> None:
    from tracker.anchors.keras_digits import KerasDigits
    from tracker.bitstream import decode_bitstream
    from tracker.data.digits import Digits

    run = next(run for run in runs(swept, "compression") if run.data.tags["tracker.codec"] == "nnc")
    folder = swept / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "bitstream"
    anchor = KerasDigits(name="keras_digits")
    model = anchor.build()
    FRAMEWORK.fill(model, decode_bitstream(folder), "the decoded tensors")
    assert isinstance(model, load().Model)
    images, labels = Digits().arrays("report")
    output = np.asarray(model.predict(images.movedim(1, -1).numpy(), verbose=0))
    top1 = float((output.argmax(1) == labels.numpy()).mean())
    assert top1 == pytest.approx(run.data.metrics["performance/decoded"])
    stored = anchor_tensors(swept)
    assert stored["conv2d/kernel"].shape == (32, 1, 3, 3)
    assert all(torch.equal(value, anchor.weights()[name]) for name, value in stored.items())


def anchor_tensors(folder: Path) -> dict[str, torch.Tensor]:
    (run,) = runs(folder, "anchor")
    return load_file(folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "anchor" / "model.safetensors")


def test_training_again_gives_the_same_weights() -> None:
    from tracker.anchors.keras_digits import KerasDigits

    anchor = KerasDigits(name="keras_digits", width=8, epochs=1)
    first, second = anchor._train(), anchor._train()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "words",
    [
        ("anchor.file=good.keras", "+codec=nnc"),
        ("anchor.file=good.weights.h5", "anchor.factory._target_=my_keras.build", "+codec=int8"),
        ("anchor.file=own.weights.h5", "anchor.factory._target_=my_keras.own", "+codec=zstd"),
        ("anchor.file=custom.keras", "+anchor.custom.Twice=my_keras.Twice", "+codec=zstd"),
    ],
)
def test_files_of_keras_are_anchors(words: tuple[str, ...], files: Path, here, ready: Path) -> None:
    given = [word.replace("anchor.file=", f"anchor.file={files}/") for word in words]
    done = here("anchor=keras", "data=digits", *given, PYTHONPATH=str(files))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (run,) = runs(ready, "compression")
    if "zstd" in words[-1]:
        assert run.data.metrics["performance/drop"] == 0


BAD = {
    "lambda.keras": "Lambda layer 'lambda'",
    "custom.keras": r"Twice, which is not a part of Keras",
    "cut.keras": "damaged",
    "text.keras": "damaged",
    "nothing.keras": "does not exist",
    "legacy.h5": r"factory\._target_ is not set",
    "nothing.weights.h5": "does not exist",
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_files_are_told_in_one_line(name: str, files: Path) -> None:
    from tracker.anchors.keras_file import KerasFile

    with pytest.raises(TrackerError, match=BAD[name]) as told:
        KerasFile(name="keras", file=files / name).weights()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "factory", "told"),
    [
        ("other.weights.h5", "build", "cannot be read as weights of this model"),
        ("cut.weights.h5", "build", "cannot be read as weights of this model"),
        ("own.weights.h5", "build", "cannot be read as weights|has not all weights"),
        ("good.weights.h5", "not_built", "not yet been built|no weights yet"),
        ("good.weights.h5", "MODELS", "cannot be found"),
    ],
)
def test_weights_of_another_model_are_refused(name: str, factory: str, told: str, files: Path, monkeypatch) -> None:
    from tracker.anchors.keras_file import KerasFile

    monkeypatch.syspath_prepend(str(files))
    anchor = KerasFile(name="keras", file=files / name, factory={"_target_": f"my_keras.{factory}"})
    with pytest.raises(TrackerError, match=told) as error:
        anchor.weights()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageFolder of six classes."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "abcdef":
            (folder / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def test_an_application_by_its_name(images: Path, here, ready: Path) -> None:
    words = ["anchor=keras_applications", "anchor.model=MobileNetV2", "anchor.size=32", f"data.root={images}"]
    small = ["anchor.pretrained=null", "+anchor.options.alpha=0.35", "+anchor.options.classes=10"]
    done = here(*words, *small, "+codec=zstd", "codec.zstd.level=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert runs(ready, "compression")[0].data.metrics["performance/drop"] == 0


def test_applications_preprocess_as_keras_does(images: Path) -> None:
    from tracker.anchors.keras_applications import KerasApplications

    keras = load()
    image = Image.open(next((images / "test" / "a").glob("*.png"))).resize((48, 48))
    for model, module in (("MobileNetV2", "mobilenet_v2"), ("ResNet50", "resnet50")):
        anchor = KerasApplications(name="x", model=model, pretrained=None, size=48, crop=1.0)
        expected = getattr(keras.applications, module).preprocess_input(np.asarray(image, dtype=np.float32))
        assert np.allclose(anchor.preprocess(image).numpy(), expected, atol=1e-3)


def test_applications_that_cannot_be_had(tmp_path: Path) -> None:
    from tracker.anchors.keras_applications import KerasApplications

    def weights(**fields: Any) -> Any:
        return KerasApplications(name="x", **fields).weights()

    with pytest.raises(TrackerError, match="did you mean MobileNetV2"):
        weights(model="MobilNetV2")
    with pytest.raises(TrackerError, match="there"):
        weights(model="preprocess_input")
    with pytest.raises(TrackerError, match=r"anchor\.pretrained: .* does not exist"):
        weights(model="MobileNetV2", pretrained=str(tmp_path / "none.h5"))
    with pytest.raises(TrackerError, match=r"anchor\.options does not suit"):
        weights(model="MobileNetV2", pretrained=None, options={"nothing": 1})
    random = [weights(model="MobileNetV2", pretrained=None, size=32, options={"alpha": 0.35}) for _ in range(2)]
    assert all(torch.equal(value, random[1][name]) for name, value in random[0].items())


def test_a_model_of_mlflow(files: Path, here, ready: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tracker, my_keras, mlflow, mlflow.tensorflow, torch\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.tensorflow.log_model(my_keras.build(), name='model', pip_requirements=[])\n"
        "    mlflow.tensorflow.log_model(my_keras.custom(my_keras.Twice()), name='custom',"
        " custom_objects={'Twice': my_keras.Twice}, pip_requirements=[])\n"
        "    print(run.info.run_id)"
    )
    made = python(code, str(files), cwd=ready, MLFLOW_TRACKING_URI=f"sqlite:///{ready}/mlruns/mlflow.db")
    assert made.returncode == 0, made.stderr
    uri = f"runs:/{made.stdout.split()[-1]}"
    words = ["anchor=keras_mlflow", "data=digits"]
    done = here(*words, f"anchor.uri={uri}/model", "+codec=zstd")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    assert run.data.metrics["performance/drop"] == 0
    made_model = f"mlruns/artifacts/models/{run.outputs.model_outputs[0].model_id}/artifacts"
    code = "import tracker.flavor, sys; print(type(tracker.flavor.load_model(sys.argv[1])).__mro__)"
    loaded = python(code, str(ready / made_model), cwd=files)
    assert "keras" in loaded.stdout, loaded.stderr
    done = here(*words, f"anchor.uri={uri}/custom", PYTHONPATH=str(files))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "allow_pickle" in done.stderr
    done = here(*words, f"anchor.uri={uri}/custom", "anchor.allow_pickle=true", PYTHONPATH=str(files))
    assert done.returncode == 0, done.stderr
    done = here("anchor=mlflow", "data=digits", f"anchor.uri={uri}/model")
    assert done.returncode == 1 and "take anchor=keras_mlflow" in done.stderr


def test_images_come_back_with_their_channel_first(files: Path) -> None:
    from tracker.anchors.keras_file import KerasFile

    anchor = KerasFile(name="keras", file=files / "image.keras")
    sample = anchor.preprocess(Image.new("RGB", (12, 10), (255, 0, 0)))
    assert sample.shape == (10, 12, 3)
    output = anchor.predict(anchor.build(), sample.unsqueeze(0))
    assert output.shape == (1, 3, 10, 12)
    assert torch.equal(output[0].movedim(0, -1), sample)


def test_without_tensorflow_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    one_line(python(WITHOUT, "anchor=keras_digits", cwd=tmp_path), "pip install 'tracker[tensorflow]'")


def test_inputs_that_do_not_suit_the_model_are_told_in_one_line(here, ready: Path) -> None:
    one_line(here("anchor=keras_digits", "data=diabetes", "anchor.epochs=1"), "do anchor=keras_digits and the data")


def test_stages_for_pytorch_alone_are_refused(here, ready: Path) -> None:
    one_line(
        here("anchor=keras_digits", "+codec=[quantsim,nnc]", "anchor.epochs=1"),
        "codec.quantsim works on models of pytorch only",
    )
    one_line(here("anchor=keras_digits", "+codec=nnc", "codec.nnc.bnf=true", "anchor.epochs=1"), "bnf")


SAVED = """
import {first}
from tracker.anchors.keras_digits import KerasDigits

class Anchor(KerasDigits):
    pass
"""


@pytest.mark.parametrize(
    "first",
    ["tensorflow, torch, torchvision", "torchvision, tensorflow"],
)
def test_a_users_module_may_import_in_any_order(first: str, tracker, ready: Path) -> None:
    (ready / "mine.py").write_text(SAVED.format(first=first))
    done = tracker("anchor=keras_digits", "anchor._target_=mine.Anchor", "anchor.epochs=1", "+codec=nnc")
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "imports",
    [
        "import tensorflow, tracker, torchvision, nncodec, mlflow, torchmetrics",
        "import tracker, torch, tensorflow, torchvision, nncodec",
        "import torchvision, tensorflow, tracker, nncodec",
    ],
)
def test_a_script_may_import_in_any_order(imports: str, tmp_path: Path) -> None:
    code = (
        f"{imports}\nimport keras, torch\n"
        "assert torch.compile is not None\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
        "print(float(torch.nn.functional.relu(torch.ones(3)).sum()), model(torch.ones(2, 4).numpy()).shape)"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.split()[0] == "3.0"
