"""Tables of which an input takes some rows only."""

from __future__ import annotations

from torch import nn


def embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """Embeddings, by the names of their weights."""
    tables = (nn.Embedding, nn.EmbeddingBag)
    return {f"{name}.weight".lstrip("."): m for name, m in model.named_modules() if isinstance(m, tables)}
