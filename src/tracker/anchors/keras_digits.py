"""The digits network in Keras: offline, trained in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from tracker.anchors.keras_base import KerasAnchor, channels_last, seeded
from tracker.frameworks.keras import FRAMEWORK, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class KerasDigits(KerasAnchor):
    """Three convolutions with batch normalisation and a dense layer, for 8x8 images and 10 classes.

    The architecture of `tracker.anchors.digits`, trained once on the same split and kept in the cache.
    """

    width: int = Field(default=32, ge=4, le=512, description="channels of the first convolution; the next have twice")
    epochs: int = Field(default=12, ge=1, le=1000)
    seed: int = Field(default=0, ge=0)

    def build(self) -> Any:
        """The network; input (N, 8, 8, 1), output logits (N, 10)."""
        layers = load().layers

        def block(channels: int) -> list[Any]:
            convolution = layers.Conv2D(channels, 3, padding="same", use_bias=False)
            return [convolution, layers.BatchNormalization(epsilon=1e-5, momentum=0.9), layers.ReLU()]

        width = self.width
        return load().Sequential(
            [
                load().Input((8, 8, 1)),
                *block(width),
                *block(2 * width),
                layers.MaxPooling2D(2),
                *block(2 * width),
                layers.GlobalAveragePooling2D(),
                layers.Dense(10),
            ]
        )

    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights, from the cache or after training (seconds on one core)."""
        from tracker.cache import cached_tensors

        key = f"keras-digits-w{self.width}-e{self.epochs}-s{self.seed}"
        return cached_tensors(key, self._train)

    def preprocess(self, sample: Any) -> Any:
        """The image with its channel last."""
        return channels_last(sample)

    def preprocessing(self) -> str:
        """In words."""
        return "channels last"

    def _train(self) -> Mapping[str, Tensor]:
        import numpy as np
        from tqdm import tqdm

        from tracker.data.digits import Digits as DigitsData

        keras = load()
        import tensorflow as tf

        with seeded(self.seed):
            model = self.build()
        images, labels = (part.numpy() for part in DigitsData().arrays("training"))
        images = np.moveaxis(images, 1, -1)
        draw = np.random.default_rng(self.seed)
        steps = self.epochs * -(-len(images) // 64)
        schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps - steps // 4, 1e-5, "rate", 1e-2, steps // 4)
        optimiser = keras.optimizers.AdamW(schedule, weight_decay=1e-2)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function(reduce_retracing=True)
        def step(batch: Any, classes: Any) -> None:
            with tf.GradientTape() as tape:
                value = loss(classes, model(batch, training=True))
            optimiser.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

        optimiser.build(model.trainable_variables)
        with tf.device("/CPU:0"):
            for _ in tqdm(range(self.epochs), desc="train keras_digits", disable=None, leave=False):
                for chosen in np.array_split(draw.permutation(len(images)), -(-len(images) // 64)):
                    # Shifts by up to one pixel: the set is small, and this takes the network to about 99 %.
                    shifted = np.roll(images[chosen], draw.integers(-1, 2, 2), axis=(1, 2))
                    step(tf.constant(shifted), tf.constant(labels[chosen]))
        return FRAMEWORK.state(model, ())
