"""Decoder language models of transformers, trained on the bytes of Python's standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.anchors import Anchor
from tracker.anchors.zoo import optional, seeded
from tracker.cache import cached_tensors
from tracker.data import Data
from tracker.data.base import Decoded, Samples, Split
from untuned.training import trained

# Of each 32 passages: the first 2 are to calibrate on, the next to search and to report; the others are to train on.
PERIOD = 32
PLACES = {"calibration": (0, 1), "search": (2,), "report": (3,), "training": tuple(range(4, PERIOD))}


class Sources(Data):
    """The standard library's own modules (``*.py`` of its folder), cut into passages of so many bytes."""

    name: str = "sources"
    length: int = Field(default=256, ge=16)

    def passages(self, part: str) -> Tensor:
        """Bytes of a split, shape (N, length), int64."""
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
        text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8)
        cut = text[: len(text) // self.length * self.length].view(-1, self.length).long()
        places = PLACES["search"] + PLACES["report"] if part == "all" else PLACES[part]
        index = torch.arange(len(cut))
        return cut[torch.isin(index % PERIOD, torch.tensor(places))]

    def samples(self, split: Split) -> Samples:
        """(bytes (length,), 0)."""
        found = self.passages(split)
        return Decoded(range(len(found)), lambda i: (found[i], 0))

    def training(self) -> Samples:
        """What the anchors have learned."""
        found = self.passages("training")
        return Decoded(range(len(found)), lambda i: (found[i], 0))

    def digest(self, split: Split) -> str:
        """Over the bytes."""
        return hashlib.sha256(self.passages(split).to(torch.uint8).numpy().tobytes()).hexdigest()


class Language(Anchor):
    """GPT-2 (tied embeddings, its own Conv1D layers) or Llama (linear layers, RMSNorm, rotary positions), small."""

    family: str = Field(default="gpt2", pattern="^(gpt2|llama)$")
    width: int = Field(default=128, ge=16)
    layers: int = Field(default=3, ge=1)
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=16, ge=1)
    length: int = Field(default=256, ge=16, description="of a passage, as data.length")
    rate: float = Field(default=3e-3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self) -> nn.Module:
        """Bytes (N, length) to logits (N, length, 256)."""
        transformers: Any = optional("transformers")
        common = {"vocab_size": 256, "use_cache": False, "bos_token_id": None, "eos_token_id": None}
        if self.family == "gpt2":
            sizes = {"n_embd": self.width, "n_layer": self.layers, "n_head": 4, "n_positions": self.length}
            dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            with seeded(self.seed):
                return transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes, **dropped))
        config = transformers.LlamaConfig(
            **common,
            hidden_size=self.width,
            intermediate_size=3 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            max_position_embeddings=self.length,
        )
        with seeded(self.seed):
            return transformers.LlamaForCausalLM(config)

    def weights(self) -> Mapping[str, Tensor]:
        """From the cache, or after training (two minutes); tied names share their tensor."""
        fields = (self.name, self.width, self.layers, self.steps, self.batch, self.length, self.rate, self.seed)
        found = cached_tensors("untuned-" + "-".join(map(str, fields)), self._train)
        model = self.build()
        model.load_state_dict(dict(found), strict=False)
        return model.state_dict()

    def _train(self) -> Mapping[str, Tensor]:
        passages = Sources(length=self.length).passages("training")

        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            ids = passages[torch.randint(len(passages), (self.batch,), generator=generator)]
            logits = model(ids).logits[:, :-1]
            return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])

        state = trained(self.build, loss, steps=self.steps, rate=self.rate, seed=self.seed, name=self.name)
        return {name: tensor for name, tensor in state.items() if name != "lm_head.weight" or self.family != "gpt2"}
