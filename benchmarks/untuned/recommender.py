"""Which module imports what: a recommender with embeddings, trained on the sources of installed packages."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.anchors import Anchor
from tracker.cache import cached_tensors
from tracker.data import Data
from tracker.data.base import Decoded, Samples, Split, arrays_digest
from tracker.errors import TrackerError
from untuned.training import trained

PACKAGES = ("matplotlib", "mlflow", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "torchmetrics")
IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;(]+)|import[ \t]+([^\n#;]+))", re.M
)
HELD = 2  # of each user's imports, none of which is learned: fewer leave an AUC too noisy to tell 0.002
CANDIDATES = 100  # of which one is the module's own import, and the others are drawn from what it does not import
OWN = 20  # of a user's imports among the candidates that are shown for training, on the average
SHARES = {"calibration": (0.0, 0.1), "search": (0.1, 0.55), "report": (0.55, 1.0), "all": (0.1, 1.0)}


class Imports(Data):
    """For each module ("user") imports ("items") that were held out, each among others that it does not have."""

    name: str = "imports"
    users: int = Field(default=5000, ge=10, description="those with the most imports")
    items: int = Field(default=4000, ge=2 * CANDIDATES, description="those that are imported most")

    def samples(self, split: Split) -> Samples:
        """({user, items (100,)}, place of the import among the items)."""
        table = held_out(self.users, self.items)
        first, last = (round(share * self.users) for share in SHARES[split])
        # Users were counted by their imports: the order is mixed, so that splits are alike.
        chosen = torch.randperm(self.users, generator=torch.Generator().manual_seed(0))[first:last].tolist()

        def sample(place: int) -> tuple[dict[str, Tensor], int]:
            user, held = divmod(place, HELD)
            items, own = table["candidates"][user, held], table["places"][user, held]
            return {"user": torch.tensor(user), "items": items}, int(own)

        return Decoded([HELD * user + held for user in chosen for held in range(HELD)], sample)

    def training(self) -> Samples:
        """As `samples`, of all users: imports that were not held out, among others; the place is not told."""
        table = held_out(self.users, self.items)
        generator = torch.Generator().manual_seed(0)
        shown = torch.randint(self.items, (self.users, CANDIDATES), generator=generator)
        drawn = torch.randint(len(table["training"]), (OWN * self.users,), generator=generator)
        users, imported = table["training"][drawn].unbind(1)
        shown[users, torch.randint(CANDIDATES, (len(users),), generator=generator)] = imported

        def sample(user: int) -> tuple[dict[str, Tensor], int]:
            return {"user": torch.tensor(user), "items": shown[user]}, -1

        return Decoded(list(range(self.users)), sample)

    def digest(self, split: Split) -> str:
        """Over all of the table."""
        return arrays_digest(*held_out(self.users, self.items).values())


class Network(nn.Module):
    """Neural matrix factorisation (He et al. 2017): a product of embeddings beside a perceptron on others."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user_factors, self.item_factors = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_features, self.item_features = nn.Embedding(users, width), nn.Embedding(items, width)
        for table in (self.user_factors, self.item_factors, self.user_features, self.item_features):
            nn.init.normal_(table.weight, std=0.1)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU()
        )
        self.score = nn.Linear(2 * width, 1)

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        """Users (N,) and items (N, K) to scores (N, K)."""
        product = self.user_factors(user)[:, None] * self.item_factors(items)
        features = self.item_features(items)
        both = torch.cat([self.user_features(user)[:, None].expand_as(features), features], dim=2)
        return self.score(torch.cat([product, self.perceptron(both)], dim=2)).squeeze(2)


class Recommender(Anchor):
    """Four embedding tables, which have nearly all of the parameters, and a small perceptron."""

    users: int = Field(default=5000, ge=10, description="as data.users")
    items: int = Field(default=4000, ge=2 * CANDIDATES, description="as data.items")
    width: int = Field(default=32, ge=2)
    steps: int = Field(default=3000, ge=10)
    batch: int = Field(default=512, ge=2)
    negatives: int = Field(default=8, ge=1, description="items drawn for each import that is learned")
    rate: float = Field(default=3e-3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self) -> nn.Module:
        """Users (N,) and items (N, K) to scores (N, K)."""
        return Network(self.users, self.items, self.width)

    def weights(self) -> Mapping[str, Tensor]:
        """From the cache, or after training (a minute)."""
        sizes = (self.users, self.items, self.width, self.steps, self.batch, self.negatives, self.rate, self.seed)
        return cached_tensors("-".join(map(str, ("untuned-recommender", HELD, *sizes, versions()))), self._train)

    def _train(self) -> Mapping[str, Tensor]:
        pairs = held_out(self.users, self.items)["training"]
        known = torch.zeros(self.users, self.items, dtype=torch.bool)
        known[pairs[:, 0], pairs[:, 1]] = True

        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            users, items = pairs[torch.randint(len(pairs), (self.batch,), generator=generator)].unbind(1)
            drawn = torch.randint(self.items, (self.batch, self.negatives), generator=generator)
            shown = torch.cat([items[:, None], drawn], dim=1)
            return F.binary_cross_entropy_with_logits(model(users, shown), known[users[:, None], shown].float())

        return trained(self.build, loss, steps=self.steps, rate=self.rate, seed=self.seed, name=self.name, decay=0.1)


def ranking(predict: Any, batches: Iterable[tuple[Any, Tensor]], top: int = 10) -> tuple[dict[str, float], np.ndarray]:
    """The area under each module's ROC curve, and how often the import is among the `top` of the candidates.

    With one import among the candidates, the area is the share of the others that score lower.
    """
    areas, hits = [], []
    for inputs, places in batches:
        scores = predict(inputs).float()
        own = scores.gather(1, places[:, None])
        above, level = (scores > own).sum(1), (scores == own).sum(1) - 1
        areas.append(1 - (above + level / 2) / (scores.shape[1] - 1))
        hits.append((above + level < top).float())
    area = torch.cat(areas).double().cpu().numpy()
    return {"auc": float(area.mean()), "hit_rate": float(torch.cat(hits).mean())}, area


@functools.cache
def held_out(users: int, items: int) -> Mapping[str, Tensor]:
    """Pairs to train on (N, 2), and for each user and import held out: candidates (users, `HELD`, 100), its place."""
    return cached_tensors(f"untuned-imports-{HELD}-{users}-{items}-{versions()}", lambda: _held_out(users, items))


def versions() -> str:
    """A key for the sources that are installed."""
    names = {"sklearn": "scikit-learn"}
    found = [importlib.metadata.version(names.get(package, package)) for package in PACKAGES]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]


def _held_out(users: int, items: int) -> dict[str, Tensor]:
    modules = [names for package in PACKAGES for names in _modules(package)]
    counts = Counter(name for names in modules for name in names)
    number = {name: i for i, (name, _) in enumerate(sorted(counts.items(), key=lambda n: (-n[1], n[0]))[:items])}
    known = [sorted({number[name] for name in names if name in number}) for names in modules]
    most = sorted((row for row in known if len(row) > 4), key=lambda row: -len(row))[:users]
    if len(most) < users or len(number) < items:
        raise TrackerError(f"data.users and data.items: the installed packages have {len(most)} and {len(number)}")
    draw = np.random.default_rng(0)
    pairs, candidates, places = [], [], []
    for user, row in enumerate(most):
        held = draw.choice(row, HELD, replace=False)
        pairs += [(user, item) for item in row if item not in held]
        others = [draw.choice(np.setdiff1d(np.arange(items), row), CANDIDATES - 1, replace=False) for _ in held]
        own = draw.integers(CANDIDATES, size=HELD)
        candidates.append([np.insert(*of) for of in zip(others, own, held, strict=True)])
        places.append(own)
    return {
        "training": torch.tensor(pairs),
        "candidates": torch.from_numpy(np.stack(candidates)),
        "places": torch.from_numpy(np.stack(places)),
    }


def _modules(package: str) -> Iterator[set[str]]:
    """What each module of a package imports, as ``module`` or ``module:name``; relative ones begin with the package."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None  # tracker depends on it
    for path in sorted(Path(found.submodule_search_locations[0]).rglob("*.py")):
        names = set[str]()
        for source, listed, plain in IMPORT.findall(path.read_bytes()):
            if source:
                module = (package if source.startswith(b".") else "") + source.decode()
                listed = re.sub(rb"#[^\n]*|\bas\s+\w+", b"", listed)
                names.update(f"{module}:{name.decode()}" for name in re.findall(rb"\w+", listed))
            else:
                names.update(part.split()[0].decode() for part in plain.split(b",") if part.split())
        yield names
