"""Super-resolution: PSNR and SSIM on luminance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task
from tracker.tasks.pictures import Comparison, Pictures

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tracker.tasks.base import Predict
    from tracker.tasks.examples import Example


SMALLEST = 11  # pixels that SSIM's window takes


class SuperResolution(Task):
    """PSNR in dB and SSIM, the mean over images, on luminance (BT.601) without a border of `border` pixels."""

    by_outputs: ClassVar[bool] = True

    name: str = "super_resolution"
    tolerance: float = 0.1
    batch_size: int = Field(default=1, ge=1)
    border: int = Field(default=2, ge=0, description="pixels cut off at each side, by convention the scale")

    @property
    def primary(self) -> str:
        """PSNR."""
        return "psnr"

    @property
    def higher_is_better(self) -> bool:
        """Yes."""
        return True

    def target(self, sample: Any) -> Tensor:
        """The original's luminance, shape (1, H, W), in 0..1."""
        from tracker.anchors.images import luminance, rgb

        return luminance(rgb(sample))

    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """Metrics psnr (dB) and ssim; scores: each image's PSNR and SSIM.

        Raises:
            TrackerError: the output is no image of the original's size, or that is too small.
        """
        import numpy as np
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        rows = []
        for inputs, originals in batches:
            outputs = _luminance(predict(inputs).float())
            if outputs.shape != originals.shape:
                raise TrackerError(
                    f"the model gives {tuple(outputs.shape)} where the original is {tuple(originals.shape)}; "
                    "data.scale or data.upscaled does not fit the anchor"
                )
            if min(originals.shape[-2:]) < SMALLEST + 2 * self.border:
                raise TrackerError(
                    f"an image of {tuple(originals.shape[-2:])} is too small for task.border={self.border}"
                )
            inner = _inner(outputs.clamp(0, 1), self.border), _inner(originals, self.border)
            for output, original in zip(*inner, strict=True):
                pair = output.unsqueeze(0), original.unsqueeze(0)
                psnr = peak_signal_noise_ratio(*pair, data_range=1.0)
                ssim: Any = structural_similarity_index_measure(*pair, data_range=1.0)
                rows.append((float(psnr), float(ssim)))
        scores = np.array(rows)
        psnr, ssim = scores.mean(axis=0)
        return Evaluation({"psnr": float(psnr), "ssim": float(ssim)}, scores)

    def soft(self, scores: np.ndarray, outputs: Iterable[Tensor], references: Iterable[Tensor]) -> np.ndarray:
        """PSNR if what a model does to an image had nothing to do with where its anchor errs: squared errors add.

        With the few images that such data have, the product of the two errors is mostly chance.
        """
        import numpy as np

        apart = []
        for pair in zip(outputs, references, strict=True):
            output, reference = (_inner(_luminance(image).clamp(0, 1), self.border).double() for image in pair)
            apart.append((output - reference).square().flatten(1).mean(1).numpy())
        return -10 * np.log10(10 ** (-scores[:, 0] / 10) + np.concatenate(apart))

    def pictures(self, comparison: Comparison) -> Pictures:
        """Up to three images: of the greatest, the middle and the least drop; both models run on them once more."""
        from tracker.tasks.examples import chosen, side_by_side

        before, after = comparison.anchor.scores, comparison.decoded.scores
        if before is None or after is None:
            return Pictures()
        shown = chosen(before[:, 0] - after[:, 0])
        return Pictures(
            {"images": lambda: side_by_side([self._example(comparison, i) for i in shown], comparison.title)}
        )

    def _example(self, comparison: Comparison, index: int) -> Example:
        """One image, with the PSNR that was measured and that of the model's input."""
        import torch
        from torchmetrics.functional.image import peak_signal_noise_ratio

        from tracker.tasks.examples import example

        given, original = comparison.sample(index)
        # Values beyond 0..1 are those of a model that takes normalised images, which cannot be shown as they are.
        image = isinstance(given, torch.Tensor) and given.ndim == 3 and given.min() > -0.1 and given.max() < 1.1
        shown = _luminance(given) if image else None
        of_input = None
        if shown is not None:
            inner = self.border * shown.shape[-1] // original.shape[-1]
            shown, target = _inner(shown, inner), _inner(original, self.border)
            if shown.shape == target.shape:
                of_input = float(peak_signal_noise_ratio(shown, target, data_range=1.0))
        scores = comparison.anchor.scores, comparison.decoded.scores
        before, after = (float(table[index, 0]) if table is not None else float("nan") for table in scores)
        # Without the border, as it is measured: there models differ most.
        outputs = [_inner(_luminance(output.float()).clamp(0, 1), self.border) for output in comparison.outputs(index)]
        return example(index, shown, outputs[0], outputs[1], (of_input, before, after))


def _inner(image: Tensor, border: int) -> Tensor:
    cut = slice(border, -border or None)
    return image[..., cut, cut]


def _luminance(image: Tensor) -> Tensor:
    from tracker.anchors.images import luminance

    return luminance(image) if image.shape[-3] == 3 else image
