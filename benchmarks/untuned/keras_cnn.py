"""A residual network of Keras, trained on photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tracker.anchors.keras_base import KerasAnchor, channels_last, seeded
from tracker.cache import cached_tensors
from tracker.frameworks.keras import load
from untuned.photographs import NAMES, blocks, drawn


class KerasCNN(KerasAnchor):
    """Three residual stages with batch normalisation, a separable convolution at each one's end, and a dense layer."""

    width: int = Field(default=32, ge=4)
    steps: int = Field(default=1200, ge=10)
    batch: int = Field(default=64, ge=2)
    rate: float = Field(default=3e-3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self) -> Any:
        """(N, 32, 32, 3) to logits (N, photographs)."""
        keras = load()
        layers = keras.layers

        def block(given: Any, convolution: Any, active: bool = True) -> Any:
            found = layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(convolution(given))
            return layers.ReLU()(found) if active else found

        def plain(channels: int, side: int = 3, stride: int = 1) -> Any:
            return layers.Conv2D(channels, side, strides=stride, padding="same", use_bias=False)

        inputs = keras.Input((32, 32, 3))
        found = block(inputs, plain(self.width))
        for factor in (1, 2, 4):
            channels, stride = factor * self.width, 1 if factor == 1 else 2
            inner = block(block(found, plain(channels, 3, stride)), plain(channels), active=False)
            around = found if stride == 1 else block(found, plain(channels, 1, stride), active=False)
            found = layers.ReLU()(layers.Add()([inner, around]))
            separable = layers.SeparableConv2D(channels, 3, padding="same", use_bias=False)
            found = layers.Add()([found, block(found, separable)])
        return keras.Model(inputs, layers.Dense(len(NAMES))(layers.GlobalAveragePooling2D()(found)))

    def weights(self) -> Mapping[str, Tensor]:
        """From the cache, or after training (a minute or two)."""
        fields = (self.width, self.steps, self.batch, self.rate, self.seed)
        return cached_tensors("untuned-keras-" + "-".join(map(str, fields)), self._train)

    def preprocess(self, sample: Tensor) -> Tensor:
        """Around 0, with the channel last."""
        return channels_last((sample - 0.5) / 0.25)

    def preprocessing(self) -> str:
        """In words."""
        return "around 0, channels last"

    def _train(self) -> Mapping[str, Tensor]:
        from tqdm import tqdm

        keras = load()
        import tensorflow as tf

        with seeded(self.seed):
            model = self.build()
        schedule = keras.optimizers.schedules.CosineDecay(
            1e-4, self.steps - self.steps // 10, 1e-2, "rate", self.rate, self.steps // 10
        )
        optimiser = keras.optimizers.AdamW(schedule, weight_decay=1e-2)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function(reduce_retracing=True)
        def step(batch: Any, classes: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(classes, model(batch, training=True))
            optimiser.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
            return value

        optimiser.build(model.trainable_variables)
        images, classes = blocks("training")
        generator = torch.Generator().manual_seed(self.seed)
        with tf.device("/CPU:0"):
            for _ in tqdm(range(self.steps), desc=f"train {self.name}", disable=None, leave=False):
                patches, chosen = drawn(images, generator, self.batch)
                given = channels_last_batch((patches - 0.5) / 0.25)
                step(tf.constant(given.numpy()), tf.constant(classes[chosen].numpy()))
        return self._state(model)


def channels_last_batch(batch: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C)."""
    return batch.movedim(1, -1).contiguous()
