"""What quantsim changes before it quantises: BatchNorm is folded, and neighbouring layers are equalised."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tracker.aimet import Prepared
from tracker.errors import TrackerError
from tracker.structure import Edit, rebuild

# Exactly these: a subclass may compute something else with its weight (standardise it) or after it (an activation).
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)

MEND = "leave quantsim out for this anchor, or give it a model that torch.jit.trace can follow"
TOLERANCE = 0.01  # of the largest output; folding only rearranges sums, and a wrong fold is off by far more


@contextlib.contextmanager
def told(what: str, mend: str) -> Iterator[None]:
    """AIMET's errors, of whatever kind and length, in one line.

    Raises:
        TrackerError: there was one.
    """
    try:
        yield
    except TrackerError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(f"AIMET cannot {what} ({type(error).__name__}: {reason}); {mend}") from error


def base(prepared: Prepared) -> nn.Module:
    """The model itself, where AIMET works on a wrapped one."""
    return prepared.model.get_submodule(prepared.prefix.rstrip("."))


def output(prepared: Prepared) -> Tensor:
    """What the model gives for its example."""
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        return prepared.model(*prepared.example).detach().double()


@contextlib.contextmanager
def unchanged(prepared: Prepared, what: str, mend: str) -> Iterator[None]:
    """Work after which the model must give what it gave before.

    Raises:
        TrackerError: it does not.
    """
    before = output(prepared)
    yield
    with told(f"run the model after {what}", mend):
        after = output(prepared)
    off = float((after - before).abs().max()) if after.shape == before.shape and after.numel() else float("nan")
    largest = float(before.abs().max())
    if not off <= TOLERANCE * largest:
        raise TrackerError(
            f"{what} changed what the model gives (by {off:.2g}, of at most {largest:.2g}): its layers are not put "
            f"together as AIMET took them to be; {mend}"
        )


def fold_norms(prepared: Prepared) -> tuple[list[Edit], dict[nn.Module, nn.Module]]:
    """Fold the BatchNorms that stand alone behind or before a layer.

    Args:
        prepared: its model is changed in place.

    Returns:
        The edit, if there was one to fold; and BatchNorms by the layers that they followed.

    Raises:
        TrackerError: AIMET cannot trace the model, or folding changed what it gives.
    """
    from aimet_torch import batch_norm_fold

    model = base(prepared)
    if not any(type(module) in NORMS for module in model.modules()):
        return [], {}
    mend = "set codec.quantsim.fold_norm=false"
    with told("trace the model to find BatchNorms to fold", mend):
        # Each way round, the BatchNorm first or second.
        found = batch_norm_fold.find_all_batch_norms_to_fold(prepared.model, None, dummy_input=prepared.example)
    sole = used_once(prepared)
    pairs = [pair for pair in found if all(module in sole for module in pair) and foldable(*pair)]
    names = {module: name for name, module in model.named_modules()}
    if not pairs:
        return [], {}
    with unchanged(prepared, "folding BatchNorm", mend), told("fold BatchNorm", mend):
        batch_norm_fold.fold_given_batch_norms(prepared.model, pairs)
    followed = {first: second for first, second in pairs if type(second) in NORMS}
    into = {norm: layer for layer, norm in followed.items()}
    into |= {first: second for first, second in pairs if type(first) in NORMS}
    return [Edit("fold_norm", {names[norm]: {"into": names[layer]} for norm, layer in into.items()})], followed


def foldable(first: nn.Module, second: nn.Module) -> bool:
    """Whether a pair is one that AIMET folds rightly."""
    norm, layer = (first, second) if type(first) in NORMS else (second, first)
    known = isinstance(norm, NORMS) and type(norm) in NORMS and type(layer) in LAYERS
    return known and isinstance(norm, NORMS) and norm.affine and norm.running_mean is not None


def used_once(prepared: Prepared) -> set[nn.Module]:
    """Modules that run once and share their parameters with no other: what they compute may be changed."""
    calls: Counter[nn.Module] = Counter()
    handles = [
        module.register_forward_hook(lambda module, *_: calls.update([module])) for module in base(prepared).modules()
    ]
    try:
        output(prepared)
    finally:
        for handle in handles:
            handle.remove()
    owners = Counter(
        parameter.data_ptr() for module in base(prepared).modules() for parameter in module.parameters(recurse=False)
    )
    return {
        module
        for module in base(prepared).modules()
        if calls[module] == 1 and all(owners[p.data_ptr()] == 1 for p in module.parameters(recurse=False))
    }


def unlimit(prepared: Prepared) -> list[Edit]:
    """ReLU in place of every ReLU6."""
    model = base(prepared)
    edit = Edit("relu", {name: {} for name, module in model.named_modules() if isinstance(module, nn.ReLU6)})
    rebuild(model, [edit])
    return [edit] if edit.layers else []


def equalise(prepared: Prepared, followed: dict[nn.Module, nn.Module]) -> int:
    """Cross-layer equalisation and high-bias folding, both in place.

    Args:
        prepared: BatchNorm is folded already.
        followed: see `fold_norms`.

    Returns:
        How many groups of layers were equalised.

    Raises:
        TrackerError: AIMET cannot trace the model, or equalisation changed what it gives.
    """
    from aimet_torch.cross_layer_equalization import CrossLayerScaling, HighBiasFold

    mend = "set codec.quantsim.equalise=false"
    # Scaling leaves the outputs as they are; folding high biases is an approximation and may change them a little.
    with unchanged(prepared, "equalising layers", mend), told("equalise the model's layers", mend):
        equalised = CrossLayerScaling.scale_model(prepared.model, dummy_input=prepared.example)
    with told("fold high biases", mend):
        HighBiasFold.bias_fold(equalised, followed)
    return len(equalised)
