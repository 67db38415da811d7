"""MPEG NNC (ISO/IEC 15938-17) through NNCodec, the Fraunhofer HHI implementation of the standard.

Option names are those of ``nncodec.nn.encode`` (https://github.com/d-becking/nncodec2). What they do is described in
Kirchhoffer et al. 2022, "Overview of the Neural Network Compression and Representation (NNR) Standard",
IEEE Transactions on Circuits and Systems for Video Technology 32(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tracker.codecs import nnc_steps
from tracker.codecs.base import Context
from tracker.codecs.nnc_arguments import arrays_of, escape, exact_of, keywords, steps_of, unescape, with_folded
from tracker.codecs.nnc_options import NncOptions
from tracker.codecs.records import Cost, Entry, TensorRecord
from tracker.errors import TrackerError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tracker.codecs.nnc_fold import Pair

FILE = "model.nnc"


class Nnc(NncOptions):
    """Quantisation and DeepCABAC entropy coding of a whole model.

    The defaults are NNCodec's own. ``qp`` sets the step size of weights (tensors of two dimensions or more),
    ``nonweight_qp`` that of all others:
    delta = (2^d + qp mod 2^d) * 2^(floor(qp / 2^d) - d), with d = ``qp_density``.
    """

    shows_progress: ClassVar[bool] = True
    temporal: ClassVar[bool] = True
    codes_integers: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True
    of_floats: ClassVar[frozenset[str]] = frozenset(("qp", "qp_early", "qp_late", "qp_density", "use_dq", "sparsity"))

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse BatchNorm folding of a model that is not PyTorch's: it traces the model."""
        super().check_model(model, framework)
        if self.bnf is True and framework != "pytorch":
            raise TrackerError(f"codec.nnc.bnf works on PyTorch models only, not on {framework}; set it to false")

    def idle(self, model: Any, tensors: Mapping[str, Tensor], framework: str) -> Mapping[str, str]:
        """BatchNorm folding where nothing can be folded, and the other qps where there are no tensors for them."""
        from tracker.bitstream.state import coded_part
        from tracker.codecs import nnc_fold

        coded = coded_part(tensors)
        weights = sum(tensor.ndim > 1 for tensor in coded.values())
        reasons = {}
        try:
            if framework != "pytorch" or not nnc_fold.foldable(model, set(coded)):
                reasons["bnf"] = "there is no BatchNorm to be folded"
        except TrackerError as error:
            reasons["bnf"] = str(error)
        if weights == len(coded):
            reasons["nonweight_qp"] = "all tensors are weights"
        if weights < 2:
            reasons |= dict.fromkeys(("qp_early", "qp_late"), "there is no more than one weight")
        return reasons

    def places(self, model: Any, context: Context) -> Sequence[Nnc]:
        """Every whole qp that the other options allow; none where `bitdepth` sets the step sizes."""
        if self.bitdepth is not None:
            return []
        limit = 2 ** (5 + self.qp_density)
        lowest = self.lowest
        if self.nonweight_qp is None:
            lowest += 2 ** (self.qp_density + 1)
        qps = range(max(lowest, lowest - int(min(self.qp_early, self.qp_late, 0))), limit // 2)
        return [self.model_copy(update={"qp": qp}) for qp in qps]

    def found(self) -> Mapping[str, float]:
        """The qp."""
        return {"nnc/qp": float(self.qp)}

    def costs(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Sequence[Cost]]:
        """Each tensor coded at half octaves, from 2^-9 of its root mean square to twice that; see `nnc_tables`."""
        from tracker.codecs import nnc_tables, nnc_units

        arrays, quantised = arrays_of(tensors, self)
        with nnc_units.told_in_one_line():
            options = keywords(arrays, quantised, self)
        density = options["qp_density"]  # finer than ours where a qp lies between two steps
        limit, octave = 2 ** (5 + density), 2**density
        qps = {}
        for name in quantised:
            middle = float((arrays[name].astype(float) ** 2).mean() ** 0.5)
            around = nnc_steps.nearest_qp(middle, density) if middle > 0 else 0
            # Larger steps make nothing but zeros of a tensor, of which its sensitivity does not tell what that does.
            raw = range(around - 9 * octave, around + octave + 1, max(octave // 2, 1))
            qps[name] = sorted({min(max(qp, -limit), limit - 1) for qp in raw})
        with nnc_units.told_in_one_line():
            found = nnc_tables.tables({name: arrays[name] for name in quantised}, qps, options)
        return {unescape(name): rows for name, rows in found.items()}

    def step_sizes(self, tensors: Mapping[str, Tensor]) -> Mapping[str, float]:
        """By qp, its slopes, and what there is for single tensors."""
        from tracker.bitstream.state import coded_part

        coded = {name: tensor for name, tensor in coded_part(tensors).items() if tensor.is_floating_point()}
        steps = steps_of([escape(name) for name, tensor in coded.items() if tensor.ndim > 1], self)
        return {
            name: nnc_steps.step_size(steps.of(escape(name), tensor.ndim > 1), steps.density)
            for name, tensor in coded.items()
        }

    @property
    def uniform(self) -> float:
        """Of dependent quantisation, whose grid is the finer one."""
        from tracker.rate_distortion.trellis import UNIFORM

        return UNIFORM if self.use_dq and self.bitdepth is None and self.approx_method == "uniform" else 1.0

    @property
    def own_steps(self) -> str:
        """Options by which NNCodec would quantise anew what stages before have chosen."""
        named = {"opt_qp": self.opt_qp, "bitdepth": self.bitdepth is not None, "sparsity": self.sparsity > 0}
        return next((name for name, set_ in named.items() if set_), "")

    @property
    def dependent(self) -> bool:
        """Where it takes the trellis, and values in their own order."""
        return self.uniform > 1 and self.scan_order == 0

    def entries(self, option: str, model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Entry]:
        """A qp for each weight."""
        from tracker.bitstream.state import coded_part

        if option != "qp_per_tensor":
            return {}
        return {name: Entry(self.qp) for name, tensor in coded_part(tensors).items() if tensor.ndim > 1}

    def prepare(self) -> None:
        """Import nncodec, which brings torchvision and scikit-learn."""
        import nncodec.nnc  # noqa: F401

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Code all tensors into one NNC bitstream.

        Raises:
            TrackerError: qp_per_tensor names a tensor that is not there, values are beyond what a step size can
                represent, the model cannot be traced for BatchNorm folding, or NNCodec fails.
        """
        from tracker.codecs import nnc_fold, nnc_units

        arrays, quantised = arrays_of(tensors, self)
        pairs = self._pairs(model, {unescape(name) for name in quantised}, context)
        folded = nnc_fold.folded(pairs, arrays, escape) if pairs else None
        with nnc_units.told_in_one_line():
            options = keywords(arrays, quantised, self, context)
            if folded is not None:
                options["qp_per_tensor"] = with_folded(options["qp_per_tensor"], folded.step_of, context)
            coded, sizes, clipped = nnc_units.encode_units(arrays, folded, options, exact_of(context))
        (folder / FILE).write_bytes(coded)
        if pairs:
            nnc_fold.write(pairs, folder)
        steps = nnc_steps.Steps(
            options["qp_density"],
            options["qp"],
            options["nonweight_qp"],
            {**(options["qp_per_tensor"] or {}), **clipped},
        )
        return self._records(arrays, sizes, steps, {escape(name) for pair in pairs for name in pair.members})

    def _pairs(self, model: Any, names: set[str], context: Context) -> list[Pair]:
        """Layers and normalisations that are folded."""
        from tracker.codecs import nnc_fold

        if not self.bnf or model is None:  # parts of a model are never folded
            return []
        if self.bnf == "auto" and (
            context.framework != "pytorch" or self.bitdepth is not None or self.approx_method == "codebook"
        ):
            return []
        try:
            return nnc_fold.foldable(model, names)
        except TrackerError:
            if self.bnf == "auto":
                return []
            raise

    def preview(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor] | None:
        """The quantised values, without entropy coding; None where NNCodec's own differ from what its decoder gives."""
        if self._pairs(model, {name for name, tensor in tensors.items() if tensor.is_floating_point()}, context):
            return None
        return self.approximate(tensors, model, context)

    def approximate(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor] | None:
        """The quantised values of each tensor by itself, whether or not BatchNorm is folded."""
        import torch

        from tracker.codecs import nnc_units

        if self.bitdepth is not None:
            return None
        arrays, quantised = arrays_of(tensors, self)
        with nnc_units.told_in_one_line():
            values = nnc_units.quantise_units(arrays, keywords(arrays, quantised, self, context), exact_of(context))
        return {unescape(name): torch.from_numpy(values[name]).float() for name in quantised}

    def restated(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor]:
        """With scales of folded BatchNorms in the weights, and without what the shifts make up for."""
        from tracker.bitstream.state import coded_part
        from tracker.codecs import nnc_fold

        if not self.bnf:
            return tensors
        return nnc_fold.restated(self._pairs(model, set(coded_part(tensors)), context), tensors)

    def decode(self, folder: Path) -> dict[str, Tensor]:
        """The tensors, float32, as NNCodec's own decoder gives them."""
        import torch

        from tracker.codecs import nnc_fold, nnc_units

        arrays = nnc_units.decode_units((folder / FILE).read_bytes())
        tensors = {}
        for name in list(arrays):
            tensor = torch.from_numpy(arrays.pop(name))
            # Codebooks come as float64; integers that were coded without loss stay what they are.
            tensors[unescape(name)] = tensor.float() if tensor.is_floating_point() else tensor
        return nnc_fold.unfold(tensors, folder)

    def encode_difference(
        self,
        tensors: Mapping[str, Tensor],
        folder: Path,
        context: Context,
        carried: Mapping[str, Tensor],
        temporal: bool = False,
    ) -> list[TensorRecord]:
        """Code differences as an incremental update, without the tensors of which nothing is left.

        Raises:
            TrackerError: as `encode`.
        """
        from tracker.codecs import nnc_difference, nnc_units

        arrays, quantised = arrays_of(tensors, self)
        with nnc_units.told_in_one_line():
            options = keywords(arrays, quantised, self, context)
            values = nnc_units.quantise_units(arrays, options)
            arrays = {name: array for name, array in arrays.items() if values[name].any()}
            if not arrays:
                return []
            found = nnc_difference.parents(carried)
            each = {name: {"approx_param_base": nnc_difference.of_tensors(found, [name])} for name in arrays}
            given = {**options, "compress_differences": True, "tca": temporal}
            numbers = nnc_difference.numbers(list(arrays), found)
            coded, sizes, clipped = nnc_units.encode_units(arrays, None, given, each, numbers)
        (folder / FILE).write_bytes(coded)
        per_tensor = {**(options["qp_per_tensor"] or {}), **clipped}
        steps = nnc_steps.Steps(options["qp_density"], options["qp"], options["nonweight_qp"], per_tensor)
        return self._records(arrays, sizes, steps, set())

    def decode_difference(
        self, folder: Path, carried: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The differences, and the integers that the next update may refer to."""
        import torch

        from tracker.codecs import nnc_difference

        arrays, after = nnc_difference.decode((folder / FILE).read_bytes(), carried)
        return {unescape(name): torch.from_numpy(array).float() for name, array in arrays.items()}, after

    def _records(
        self,
        arrays: Mapping[str, np.ndarray],
        sizes: Mapping[str, int],
        steps: nnc_steps.Steps,
        folded: set[str],
    ) -> list[TensorRecord]:
        """Step size and size of each tensor; a block's size is told with its weight."""
        uniform = self.bitdepth is None and self.approx_method == "uniform"
        records = []
        for name, array in arrays.items():
            plain = uniform and array.dtype.kind == "f"
            qp = steps.of(name, array.ndim > 1)
            alone = name not in folded
            step = nnc_steps.step_size(qp, steps.density) if plain and (alone or array.ndim > 1) else None
            records.append(TensorRecord(unescape(name), step, sizes.get(name), scaled=not alone))
        return records
