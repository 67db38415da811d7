"""From a trial's values to a composed configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tracker.errors import TrackerError
from tracker.sweep.space import Parameter

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

NOT_OF_A_TRIAL = ("sweep", "cluster")  # config groups that say how to search, not what a trial is
MISSING = object()


class Composer:
    """Composes as Hydra does, but only once for each choice of config groups: that takes most of the time."""

    def __init__(self, hydra: DictConfig) -> None:
        """Prepare.

        Args:
            hydra: the node ``hydra`` of a job or of a multirun: it tells the config sources and the overrides.
        """
        self.name: str | None = hydra.job.config_name
        self.loader = loader_of(hydra)
        self.hydra_overrides = list(hydra.overrides.hydra)
        sources = hydra.runtime.config_sources
        self.folders = [source.path for source in sources if source.provider == "command-line"]  # --config-dir
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def config(self, fixed: Sequence[str], values: Mapping[str, Any], space: Mapping[str, Parameter]) -> dict[str, Any]:
        """The configuration of a trial, as plain containers.

        Args:
            fixed: overrides that all trials share.
            values: of the parameters, by key.
            space: the parameters.

        Raises:
            TrackerError: a key is not part of the configuration.
        """
        groups = [_word(space[key], value) for key, value in values.items() if space[key].group]
        config = copy.deepcopy(self._base((*fixed, *groups)))
        for key, value in values.items():
            if not space[key].group:
                self._set(config, space[key], value)
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return plain

    def value(self, fixed: Sequence[str], key: str) -> Any:
        """The value of a key without a sweep, None where there is none."""
        found = OmegaConf.select(self._base(tuple(fixed)), key, default=None, throw_on_missing=False)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    def has(self, fixed: Sequence[str], key: str) -> bool:
        """Whether a key is an option, whatever its value; ``KEY.*`` stands for the option itself."""
        key = key.lstrip("+").removesuffix(".*")
        return OmegaConf.select(self._base(tuple(fixed)), key, default=MISSING, throw_on_missing=False) is not MISSING

    def _base(self, overrides: tuple[str, ...]) -> DictConfig:
        from hydra.types import RunMode

        if overrides not in self.bases:
            config = self.loader.load_configuration(
                self.name, [*overrides, *self.hydra_overrides], run_mode=RunMode.MULTIRUN
            )
            with open_dict(config):
                del config["hydra"]
            self.bases[overrides] = config
        return self.bases[overrides]

    def _set(self, config: DictConfig, parameter: Parameter, value: Any) -> None:
        key = parameter.key.lstrip("+")
        try:
            if parameter.entry:
                value = {**(OmegaConf.select(config, key) or {}), parameter.entry: value}
            OmegaConf.update(config, key, parsed(value), merge=False, force_add=parameter.key.startswith("+"))
        except OmegaConfBaseException as error:
            stage = key.split(".")[1] if key.startswith("codec.") else None
            if stage is not None and OmegaConf.select(config, f"codec.{stage}") is None:
                raise TrackerError(
                    f"{key} cannot be searched without its stage: add +codec={stage}, or +codec=[...,{stage},...] in a "
                    "chain"
                ) from error
            raise TrackerError(
                f"{key} is not an option here, so it cannot be searched; look at `python -m tracker --cfg job` with "
                f"the same codec for those that are (one that has no value there yet: +{key}=...)"
            ) from error


def loader_of(hydra: DictConfig) -> ConfigLoader:
    """A config loader with the sources of a job, in whatever process that is."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    path = ConfigSearchPathImpl()
    for source in hydra.runtime.config_sources:
        path.append(source.provider, f"{source.schema}://{source.path}")
    return ConfigLoaderImpl(config_search_path=path)


def overrides_of(fixed: Sequence[str], values: Mapping[str, Any], space: Mapping[str, Parameter]) -> list[str]:
    """The words of the command line that make a trial's configuration."""
    own = [word for word in fixed if word.lstrip("+~").split("=")[0].split("@")[0] not in NOT_OF_A_TRIAL]
    plain = {key: value for key, value in values.items() if not space[key].entry}
    mappings: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if space[key].entry:
            mappings.setdefault(space[key].key, {})[space[key].entry] = value
    words = [_word(space[key], value) for key, value in plain.items()]
    for option, entries in mappings.items():
        inner = ",".join(f"{name}:{_text(value)}" for name, value in entries.items())
        words.append(f"{option}={{{inner}}}")
    return [*own, *words]


def parsed(value: Any) -> Any:
    """A choice that stands for a list or a mapping, as one; anything else as it is."""
    import yaml

    if isinstance(value, str) and value[:1] in "[{":
        return yaml.safe_load(value)
    return value


def _word(parameter: Parameter, value: Any) -> str:
    """KEY=VALUE."""
    return f"{parameter.key}={_text(value)}"


def _text(value: Any) -> str:
    """A value as the command line has it."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, int | float) else str(value)
