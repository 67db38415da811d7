"""Language modelling: perplexity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    import numpy as np

    from tracker.tasks.base import Predict


class LanguageModelling(Task):
    """Perplexity of the next token; lower is better.

    The inputs' ``input_ids`` (N, L) are the targets too, shifted by one; where ``attention_mask`` is 0, tokens do not
    count.
    """

    classes: ClassVar[int | None] = -1
    by_choice: ClassVar[bool] = False

    name: str = "language_modelling"
    tolerance: float = 0.1
    batch_size: int = Field(default=8, ge=1)

    @property
    def primary(self) -> str:
        """Perplexity."""
        return "perplexity"

    @property
    def higher_is_better(self) -> bool:
        """No."""
        return False

    def target(self, sample: Any) -> int:
        """Nothing: the targets are in the inputs."""
        return 0

    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """Metric perplexity; scores: negative log-likelihood (nats) and number of tokens of each passage.

        Raises:
            TrackerError: the inputs have no token ids, or the output is not (batch, length, vocabulary).
        """
        import torch
        from torch.nn.functional import cross_entropy
        from torchmetrics.text import Perplexity

        metric, rows = Perplexity(ignore_index=-100), []
        for inputs, _ in batches:
            ids = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
            if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
                raise TrackerError("task=language_modelling needs inputs of token ids (batch, length) or input_ids")
            logits = predict(inputs).float()
            if logits.ndim != 3 or logits.shape[:2] != ids.shape:
                raise TrackerError(f"the output {tuple(logits.shape)} is not (batch, length, vocabulary)")
            target = (
                ids.masked_fill(inputs["attention_mask"] == 0, -100)
                if (isinstance(inputs, dict) and "attention_mask" in inputs)
                else ids
            )
            logits, target = logits[:, :-1].cpu(), target[:, 1:].long().cpu()
            metric.update(logits, target)
            loss = cross_entropy(logits.transpose(1, 2), target, ignore_index=-100, reduction="none")
            rows.append(torch.stack([loss.double().sum(1), (target != -100).double().sum(1)], dim=1))
        return Evaluation({"perplexity": float(metric.compute())}, torch.cat(rows).numpy())

    def performance(self, scores: np.ndarray) -> float:
        """Perplexity over some passages."""
        import numpy as np

        return float(np.exp(scores[:, 0].sum() / scores[:, 1].sum()))
