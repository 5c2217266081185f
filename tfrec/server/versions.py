"""Which versions of a model its folder and its policy ask for.

Reference: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tfrec.server.status import invalid

_NUMBER = re.compile(r"[+-]?\d{1,19}")
_LIMIT = 2**63


def version_folders(base: Path) -> dict[int, Path]:
    """The numbered folders below a model's base path."""
    named = ((folder.name, folder) for folder in base.iterdir() if _NUMBER.fullmatch(folder.name) and folder.is_dir())
    return {int(name): folder for name, folder in named if -_LIMIT <= int(name) < _LIMIT}


def aspired_versions(name: str, base: Path, policy: Any) -> dict[int, Path]:
    """The versions that a ServableVersionPolicy wants served.

    Args:
        name: of the model.
        policy: latest (the default), all or specific.

    Raises:
        RequestError: there is no base path.
    """
    if not base.is_dir():
        raise invalid(f"Could not find base path {base} for servable {name} with error NOT_FOUND: {base} not found")
    found = version_folders(base)
    choice = policy.WhichOneof("policy_choice") or "latest"
    if choice == "all":
        return found
    if choice == "specific":
        return {version: found[version] for version in policy.specific.versions if version in found}
    newest = sorted(found, reverse=True)[: max(policy.latest.num_versions, 1)]
    return {version: found[version] for version in newest}
