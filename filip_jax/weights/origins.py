"""Where a run's weights are from: what its import recorded, and those of the runs that it began with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filip_jax import storage
from filip_jax.saved_config import FILE, read_config
from filip_jax.small_files import read_json, read_own
from filip_jax.user_paths import from_user
from filip_jax.weights.output import COPIED, MAX_COPY_BYTES, ORIGIN

MAX_RUNS = 8  # that began with each other
RECORDED = ("family", "files", "license")  # of origin.json
LICENSES = ("LICENSE", "NOTICE")  # how the names of their files begin
KEYS = ("license", "license_name", "license_link", "base_model")  # of a model card's head


def origins_of(workdir: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what origin.json says of the weights of a run, and of those that it began with, the nearest first."""
    origins: list[dict[str, Any]] = []
    for _ in range(MAX_RUNS):
        if (workdir / ORIGIN).is_file():
            origin = read_json(workdir / ORIGIN)
            origins.append({name: origin[name] for name in RECORDED if name in origin})
        section = config.get("init_from")
        path = section.get("path") if isinstance(section, Mapping) else ""
        if not isinstance(path, str) or not path:
            break
        donor = _workdir_of(path)
        if donor is None:
            origins.append({"init_from": path, "unknown": "it is not on this machine any more, or in a bucket"})
            break
        origins.append({"init_from": path})
        workdir, config = donor, read_config(donor)
    return origins


def _workdir_of(path: str) -> Path | None:
    """Return the workdir of init_from.path, which may be the folder of a step."""
    place = Path(from_user(path))
    if storage.is_remote(from_user(path)):
        return None
    return next((each for each in (place, *place.parents[:2]) if (each / FILE).is_file()), None)


def license_of(origins: list[dict[str, Any]]) -> dict[str, str]:
    """Return what the nearest of them that states a license says."""
    stated = (each.get("license") for each in origins)
    terms = next((each for each in stated if isinstance(each, dict) and each), {})
    return {key: terms[key] for key in KEYS if isinstance(terms.get(key), str)}


def license_files(source: Path | None) -> dict[str, bytes]:
    """Return the files of licenses that came with the weights of a run.

    Raises:
        UserError, OSError: one cannot be read.
    """
    names = [name for name in COPIED if name.startswith(LICENSES)] if source else []
    return {name: read_own(source / name, MAX_COPY_BYTES) for name in names if (source / name).is_file()}  # type: ignore[operator]
