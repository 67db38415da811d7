"""A codec: transforms in the order given, then exactly one coder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracker.codecs.base import Coder, Context, Stage, Transform
from tracker.component import build
from tracker.errors import TrackerError


@dataclass(frozen=True)
class Codec:
    """A chain of stages.

    Attributes:
        transforms: by the names that they have in the config, in order.
        coder_name: the coder's name in the config.
        coder: the last stage.
    """

    transforms: Mapping[str, Transform]
    coder_name: str
    coder: Coder

    @property
    def stages(self) -> list[str]:
        """The names of all stages, in order."""
        return [*self.transforms, self.coder_name]

    @property
    def by_name(self) -> dict[str, Stage]:
        """All stages, in order."""
        return {**self.transforms, self.coder_name: self.coder}

    @property
    def packages(self) -> set[str]:
        """The top-level packages that the stages' classes come from: the sender trusts its own configuration."""
        return {type(stage).__module__.split(".")[0] for stage in (*self.transforms.values(), self.coder)}

    @property
    def name(self) -> str:
        """Such as ``svd>nnc``."""
        return ">".join(self.stages)

    def without(self, names: Collection[str]) -> Codec:
        """The chain without some of its transforms."""
        return replace(self, transforms={name: one for name, one in self.transforms.items() if name not in names})

    def remaining(self, model: Any, context: Context) -> Mapping[str, float]:
        """See `Transform.remaining`: of all transforms together."""
        found: dict[str, float] = {}
        for stage in self.transforms.values():
            for name, share in stage.remaining(model, context).items():
                found[name] = found.get(name, 1.0) * share
        return found


def check_named_once(words: Sequence[str]) -> None:
    """Refuse a chain that has a stage twice: Hydra makes one of the two, without a word.

    Args:
        words: of the command line.

    Raises:
        TrackerError: that.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides([word for word in words if "codec" in word]):
        chain = override.value()
        if override.key_or_group != "codec" or not isinstance(chain, list):
            continue
        twice = [stage for stage, count in Counter(map(str, chain)).items() if count > 1]
        if twice:
            raise TrackerError(
                f"the chain {'>'.join(map(str, chain))} has {twice[0]} more than once, and codec.{twice[0]} holds the "
                "options of one: leave the others out"
            )


def build_codec(config: Mapping[str, Any]) -> Codec | None:
    """The chain that a config describes; None where there is none.

    Args:
        config: stage configs by name, in the order of the chain.

    Raises:
        TrackerError: the chain has no coder, two, or one that is not last; or a stage is configured wrongly.
    """
    if not config:
        return None
    stages = {name: build(node, f"codec.{name}", Stage) for name, node in config.items()}
    for name, stage in stages.items():
        stage._configured = name
    chain = ">".join(stages)
    coders = [name for name, stage in stages.items() if isinstance(stage, Coder)]
    if not coders:
        raise TrackerError(f"the chain {chain} has no coder: end it with one, such as +codec=[{','.join(stages)},nnc]")
    if len(coders) > 1:
        raise TrackerError(
            f"the chain {chain} has {len(coders)} coders ({', '.join(coders)}): keep one, the last stage"
        )
    *before, last = stages
    coder = stages[last]
    if not isinstance(coder, Coder):
        raise TrackerError(f"in the chain {chain} the coder {coders[0]} is not last: move it to the end")
    transforms: dict[str, Transform] = {}
    for name in before:
        stage = stages[name]
        if not isinstance(stage, Transform):
            raise TrackerError(f"codec.{name} is neither a Transform nor a Coder")
        transforms[name] = stage
    for name, follower in zip(transforms, list(transforms)[1:], strict=False):
        if transforms[name].final:
            raise TrackerError(
                f"in the chain {chain} {follower} would undo the work of {name}: make {name} the last transform"
            )
    for number, (name, stage) in enumerate(transforms.items()):
        deaf = [after for after in list(stages)[number + 1 :] if not stages[after].takes_steps]
        if stage.makes_steps and deaf:
            mend = "end it with nnc" if deaf[0] == last else f"put {deaf[0]} before {name}"
            raise TrackerError(f"in the chain {chain} {name} chooses step sizes, which {deaf[0]} does not take; {mend}")
        if stage.makes_steps and coder.own_steps:
            raise TrackerError(
                f"in the chain {chain} {name} chooses step sizes, which codec.{last}.{coder.own_steps} would change: "
                "leave that option out"
            )
        stage.check_coder(coder)
    for stage in stages.values():
        stage.check()
    return Codec(transforms, last, coder)
