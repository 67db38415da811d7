"""A chain at the working point that a target asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tracker.codecs.base import Coder, Stage, Transform
from tracker.codecs.chain import Codec
from tracker.errors import TrackerError
from tracker.rate_distortion.aim import LEAST, Found, by_divergence, working_point
from tracker.scenarios.draft import Draft, Workshop

if TYPE_CHECKING:
    from tracker.codecs.base import Context
    from tracker.settings import Aim
    from tracker.tracking.run import MetricsOnly, Run

Through = Callable[[Codec], Draft]
# Where training changes nearly all, it begins at a divergence from the anchor's classes of so many times the drop that
# is wanted, in a network that is rounded to the nearest: drops of single networks are noisy, and it must begin neither
# too fine nor too coarse. (With `round` an eighth of that is left, but noisier from place to place, and it takes long.)
BEGINS = 48.0


class Pivot(NamedTuple):
    """Where a chain is changed to reach a target.

    Attributes:
        stage: whose places are searched.
        first: the first stage whose work depends on them.
        last: the stage before which they are judged: one that goes on from what is found, or the coder.
    """

    stage: str
    first: str
    last: str


def pivot(codec: Codec, aim: Aim) -> Pivot | None:
    """The stage that always looks for a target; else the coder, where there is a target."""
    aiming = [name for name, stage in codec.transforms.items() if stage.aims]
    if aiming:
        return Pivot(aiming[0], aiming[0], [*aiming, codec.coder_name][1])
    if not aim.wanted:
        return None
    # Transforms that take step sizes ask the coder for them where no stage before has given any.
    first = next((name for name, stage in codec.transforms.items() if stage.takes_steps), codec.coder_name)
    return Pivot(codec.coder_name, first, codec.coder_name)


def check_target(codec: Codec | None, aim: Aim, overrides: Sequence[str] = ()) -> None:
    """Refuse a target that no stage can look for, or whose answer is given beside it, before any work starts.

    Args:
        codec: the chain.
        aim: the target.
        overrides: words of the command line.

    Raises:
        TrackerError: that.
    """
    if not aim.wanted:
        return
    if codec is None:
        raise TrackerError(f"{aim.key} needs a codec, such as +codec=nnc_fast")
    found = pivot(codec, aim)
    assert found is not None
    stage = codec.by_name[found.stage]
    option = stage.answer if isinstance(stage, Transform) else codec.coder.rate_falls_with
    own = f"codec.{found.stage}.{option}"
    fixed = isinstance(stage, Transform) and getattr(stage, option, None) is not None
    if option and (fixed or any(word.lstrip("+").startswith(f"{own}=") for word in overrides)):
        raise TrackerError(f"{own} is what {aim.key} looks for: leave one of them out")
    if found.stage != codec.coder_name or codec.coder.rate_falls_with:
        return
    raise TrackerError(
        f"{codec.coder_name} has no option with which {aim.key} could be reached; take nnc, or leave it out"
    )


def refuse_target(codec: Codec | None, aim: Aim) -> None:
    """Refuse a target for a coder in a sweep, which looks for the working point itself.

    Raises:
        TrackerError: that.
    """
    found = pivot(codec, aim) if codec is not None else None
    if codec is not None and found is not None and found.stage == codec.coder_name:
        raise TrackerError(f"a sweep looks for the working point itself: leave {aim.key} out, or change task.tolerance")


def is_bold(codec: Codec, where: Pivot, shop: Workshop) -> bool:
    """Whether a stage begins there that undoes far more loss than the target allows."""
    return where.last != codec.coder_name and shop.context.likeliest


def left_out(codec: Codec, where: Pivot, shop: Workshop) -> frozenset[str]:
    """Stages on the way to one that begins from what the model was before them: what they do would not last."""
    if not is_bold(codec, where, shop) or not codec.by_name[where.last].takes_unrounded:
        return frozenset()
    between = codec.stages[codec.stages.index(where.stage) : codec.stages.index(where.last)]
    return frozenset(name for name in between if codec.transforms[name].for_rounding)


def aimed(codec: Codec, where: Pivot, draft: Draft, shop: Workshop, run: Run | MetricsOnly) -> Codec:
    """The chain with one stage at the place that meets the target, or from which another stage begins to look for it.

    Args:
        codec: the chain.
        where: it is changed.
        draft: as it comes to the first stage that depends on it.
        shop: what it is worked on with, and the target.
        run: to log to.

    Raises:
        TrackerError: no place meets a target of bytes, or there is no data to measure a drop on.
    """
    working = codec.without(left_out(codec, where, shop))
    places = codec.by_name[where.stage].places(draft.model, shop.given(working, draft))
    if not places:
        if where.stage == codec.coder_name:
            raise TrackerError(
                f"codec.{where.stage}, as it is configured, has nothing with which a target could be reached; leave it "
                "out"
            )
        return codec

    chain = [with_stage(codec, where.stage, place) for place in places]

    def through(changed: Codec, last: str = where.last) -> Draft:
        # Made for its figure and given up: models of all places would not fit.
        return shop.through(changed, where.first, last, draft)

    if is_bold(codec, where, shop):
        following = codec.stages[codec.stages.index(where.stage) + 1]
        chosen, rows = _of_divergence(chain, functools.partial(through, last=following), where.last, shop)
    else:
        context = shop.context
        if where.last != codec.coder_name:  # what only begins there needs a drop to begin with, whatever its target
            context = replace(context, target=replace(context.target, bytes=None))
        chosen, rows = _of_target(chain, through, shop, context, where.stage == codec.coder_name)
    run.log_table(rows, "target.json")
    run.log_metrics(places[chosen].found())
    return chain[chosen]


def _of_divergence(chain: list[Codec], through: Through, last: str, shop: Workshop) -> tuple[int, list[dict[str, Any]]]:
    """The place from which the stage `last` begins to train, and what was measured on the way."""
    chosen, measured = by_divergence(
        len(chain),
        lambda place: shop.divergence(chain[place], last, through(chain[place])),
        BEGINS * max(shop.context.target.drop, LEAST),
    )
    return chosen, [{"place": place, "divergence": value} for place, value in measured.items()]


def _of_target(
    chain: list[Codec], through: Through, shop: Workshop, context: Context, lucky: bool
) -> tuple[int, list[dict[str, Any]]]:
    """The place that meets the context's target, and those that were looked at; see `working_point`."""
    seen: dict[int, Found[Codec]] = {}
    chosen = working_point(
        len(chain),
        chain.__getitem__,
        lambda changed: shop.judge(changed, through(changed)),
        lambda changed: shop.size(changed, through(changed)),
        context,
        seen,
        lucky,
    )
    return chosen.place, [_row(one) for one in seen.values()]


def with_stage(codec: Codec, name: str, stage: Stage) -> Codec:
    """A chain with one stage in place of another."""
    if isinstance(stage, Coder):
        return replace(codec, coder=stage)
    assert isinstance(stage, Transform)
    return replace(codec, transforms={**codec.transforms, name: stage})


def _row(one: Found[Any]) -> dict[str, Any]:
    return {
        "place": one.place,
        "bytes": one.bytes,
        "drop on the search split": one.judged and one.judged.drop,
        "likely below": one.judged and one.judged.bound,
    }
