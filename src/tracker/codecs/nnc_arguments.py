"""What NNCodec is given: tensors under names that it takes, and a coder's options as its keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.codecs import nnc_steps
from tracker.codecs.base import Context
from tracker.codecs.nnc_options import NncOptions
from tracker.errors import TrackerError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def arrays_of(tensors: Mapping[str, Tensor], options: NncOptions) -> tuple[dict[str, np.ndarray], set[str]]:
    """The tensors as NNCodec takes them, by escaped name, and the names of those that it quantises.

    Raises:
        TrackerError: they cannot be coded with these options.
    """
    floats = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    if unknown := sorted(set(options.qp_per_tensor) - floats):
        kind = "integers already" if unknown[0] in tensors else "no tensor of the model"
        raise TrackerError(f"codec.nnc.qp_per_tensor names {unknown[0]!r}, which is {kind}")
    arrays = {
        escape(name): (tensor.float() if name in floats else tensor.int()).contiguous().numpy()
        for name, tensor in tensors.items()
    }
    quantised = {escape(name) for name in floats}
    if options.sparsity:
        arrays |= _sparse({name: array for name, array in arrays.items() if name in quantised}, options)
    for name, array in arrays.items():
        if name not in quantised:
            continue
        _check_range(name, array, options)
        if options.scan_order and array.ndim > 1 and array.size in (len(array), array[0].size):
            raise TrackerError(
                f"scan_order={options.scan_order} does not work in nncodec for tensors of one row or column, such as "
                f"{unescape(name)}; use codec.nnc.scan_order=0"
            )
    return arrays, quantised


def keywords(
    arrays: Mapping[str, np.ndarray], quantised: set[str], options: NncOptions, context: Context | None = None
) -> dict[str, Any]:
    """Keyword arguments of ``nncodec.nnc.compress``."""
    from tracker.codecs import nnc_units

    given = {escape(name): size for name, size in context.steps.items()} if context is not None else {}
    weights = [name for name, array in arrays.items() if array.ndim > 1 and name in quantised]
    steps = steps_of(weights, options, given)
    found: dict[str, Any] = {
        "qp": steps.qp,
        "qp_density": steps.density,
        "nonweight_qp": steps.nonweight,
        "qp_per_tensor": steps.per_tensor or None,
        "use_dq": options.use_dq,
        "codebook_mode": 2 if options.approx_method == "codebook" else 0,
        "scan_order": options.scan_order,
        "lambda_scale": options.lambda_scale,
        "param_opt": options.param_opt,
        "cabac_unary_length_minus1": options.cabac_unary_length_minus1,
        "row_skipping": options.row_skipping,
        "int_quant_bw": options.bitdepth or False,
    }
    if options.opt_qp:
        floats = {name: array for name, array in arrays.items() if name in quantised}
        found["qp_per_tensor"] = nnc_units.optimised_qp(floats, found)
    return found


def exact_of(context: Context) -> dict[str, dict[str, Any]]:
    """Options for the tensors that a stage before made multiples of their step sizes, by escaped name.

    Without the rate in its costs, NNCodec's trellis has one path without error: the integers that were chosen.
    """
    return {
        escape(name): {"use_dq": name in context.dependent, "lambda_scale": 0.0}
        for name in context.exact
        if name in context.steps
    }


def with_folded(
    qps: Mapping[str, int] | None, step_of: Mapping[str, Sequence[str]], context: Context
) -> dict[str, int] | None:
    """The qps of single tensors, and of scales and shifts where stages before have chosen their step sizes."""
    chosen = {escape(name) for name in context.steps}
    own = {name: min(qps[one] for one in of) for name, of in step_of.items() if qps and chosen.issuperset(of)}
    return {**(qps or {}), **own} or None


def steps_of(weights: Sequence[str], options: NncOptions, given: Mapping[str, float] | None = None) -> nnc_steps.Steps:
    """The qps, by escaped name, at a density that has them all; step sizes that a stage before has given come first.

    Raises:
        TrackerError: no density has a step size.
    """
    chosen = {name: nnc_steps.exact_qp(size, options.qp_density) for name, size in (given or {}).items()}
    if missing := [name for name, found in chosen.items() if found is None]:
        raise TrackerError(f"NNC has no step of {(given or {})[missing[0]]:.6g}, which was chosen for {missing[0]}")
    found = {name: one for name, one in chosen.items() if one is not None}
    density = max((finer for _, finer in found.values()), default=options.qp_density)
    scale = 2 ** (density - options.qp_density)
    own = {escape(name): scale * qp for name, qp in options.qp_per_tensor.items()}
    own |= {name: qp * 2 ** (density - finer) for name, (qp, finer) in found.items()}
    nonweight = None if options.nonweight_qp is None else scale * options.nonweight_qp
    slopes = (scale * options.qp_early, scale * options.qp_late)
    return nnc_steps.resolve(density, scale * options.qp, nonweight, own, slopes, weights)


def _sparse(arrays: dict[str, np.ndarray], options: NncOptions) -> dict[str, np.ndarray]:
    """NNCodec's magnitude pruning, unstructured and then structured."""
    import numpy as np
    from nncodec.framework.applications.utils import sparsification

    from tracker.codecs.nnc_units import quiet

    steps = steps_of([], options)
    with quiet():
        arrays = sparsification.apply_unstruct_spars_v2(
            steps.qp, arrays, target_sparsity=options.sparsity, qp_density=np.int32(steps.density)
        )
        if options.struct_spars_factor:
            arrays = sparsification.apply_struct_spars_v2(arrays, gain=options.struct_spars_factor)
    return dict(arrays)


def _check_range(name: str, array: np.ndarray, options: NncOptions) -> None:
    """Refuse values that even the largest step size cannot bring into 32 bits: nncodec would code garbage."""
    largest = nnc_steps.step_size(2 ** (5 + options.qp_density) - 1, options.qp_density) * 2.0**30
    if max(float(array.max()), -float(array.min())) > largest:
        raise TrackerError(f"the tensor {unescape(name)} has values beyond {largest:.2g}, the range of NNC")


def escape(name: str) -> str:
    """A tensor name that nncodec takes: it reads ``_G`` and ``_H`` as the halves of a decomposition."""
    return name.replace("%", "%25").replace("_G", "%5FG").replace("_H", "%5FH")


def unescape(name: str) -> str:
    """The name before `escape`."""
    return name.replace("%5F", "_").replace("%25", "%")
