"""The version folders of a model base path."""

from __future__ import annotations

from pathlib import Path

from tfrec.errors import ServerError


def latest_version(base: Path) -> tuple[int, Path]:
    """The highest numbered folder below a model's base path.

    Raises:
        ServerError: there is no base path or no numbered folder.
    """
    if not base.is_dir():
        raise ServerError("model_base_path must be a folder", str(base))
    versions = {int(folder.name): folder for folder in base.iterdir() if folder.is_dir() and folder.name.isdecimal()}
    if not versions:
        raise ServerError("model_base_path must hold a folder named by a version number", str(base), "Export a model")
    version = max(versions)
    return version, versions[version]
