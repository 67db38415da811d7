"""MLmodel: what MLflow's own file says of a model of the flavor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tracker.errors import TrackerError
from tracker.flavor.architecture import check_plain

FLAVOR_NAME = "nnc"


def read_flavor(path: Path) -> dict[str, Any]:
    """What a model's file MLmodel says of the flavor.

    Args:
        path: of the model's folder.

    Raises:
        TrackerError: it is damaged, or of another flavor.
    """
    file = path / "MLmodel"
    check_plain(file)
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise TrackerError(
            f"{file} cannot be read ({error.strerror}); give the URI or the folder of a model"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise TrackerError(f"{file} is damaged: it is not YAML; get the model again") from error
    flavors = content.get("flavors") if isinstance(content, dict) else None
    found = flavors.get(FLAVOR_NAME) if isinstance(flavors, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("sha256"), str):
        raise TrackerError(
            f"{file} has no flavor {FLAVOR_NAME} with its bitstream's digest: it is another's model, or damaged"
        )
    return found
