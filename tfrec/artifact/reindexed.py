"""What a new version's indexes hold: items leave their buckets and enter the nearest ones; and the blend's texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfrec.artifact import buckets, ivf
from tfrec.artifact.blended import moments
from tfrec.artifact.stored import storage_of
from tfrec.artifact.variables import read_variables
from tfrec.errors import ArtifactError
from tfrec.evaluation.whitening import Whitening

_OF = {"item_index": "item_vectors", "text_index": "text_vectors"}


def indexes(
    path: Path, catalogue: Mapping[str, np.ndarray], moved: np.ndarray, delisted: np.ndarray
) -> dict[str, np.ndarray]:
    """The variables of a version's indexes over a changed catalogue; none where it has no index.

    Args:
        path: of the version.
        catalogue: the new "item_vectors", "text_vectors", "available" and, where the blend has its own, "blend_texts".
        moved: rows that are new, changed or listed again.
        delisted: rows that may not be found any more.

    Raises:
        ArtifactError: the version has an index of an earlier form.
    """
    changed: dict[str, np.ndarray] = {}
    for index, table in _OF.items():
        names = [f"{index}/{name}" for name in (*ivf.HELD, "reach", "columns")]
        held = {name.split("/")[1]: value for name, value in read_variables(path, names).items()}
        _check_form(path, held)
        if held:
            before = buckets.from_rows(*(held[name] for name in ("centroids", "items", "starts")))
            after = buckets.insert(buckets.remove(before, np.append(moved, delisted)), catalogue[table], moved)
            stored = ivf.contents(after, catalogue[table], storage_of(held["rows"]))
            changed |= {f"{index}/{name}": value for name, value in stored.items()}
    compared = "blend_texts" if "blend_texts" in catalogue else "text_vectors"
    sums = {"blended/item_moments": "item_vectors", "blended/text_moments": compared}
    held = read_variables(path, sums)
    return changed | {name: moments(catalogue[sums[name]]) for name in held}


def _check_form(path: Path, held: Mapping[str, np.ndarray]) -> None:
    advice = "Export the run again with this tfrec"
    if "columns" in held:
        raise ArtifactError(f"an exact scan must read item_vectors; that of {path} has a copy of them", advice=advice)
    if "items" in held and "reach" not in held:
        raise ArtifactError(f"an inverted file must know its reach; that of {path} has another form", advice=advice)


def put_blend_texts(path: Path, catalogue: Mapping[str, np.ndarray], moved: np.ndarray) -> None:
    """Whitens the texts of rows into "blend_texts"; they stay where a version has no whitening.

    Args:
        path: of the version.
        catalogue: the new "text_vectors" and, where the blend has its own, "blend_texts", both with all rows.
        moved: rows that are new or changed.
    """
    held = read_variables(path, ("whitening_centre", "whitening_directions"))
    if held and "blend_texts" in catalogue:
        catalogue["blend_texts"][moved] = Whitening(*held.values())(catalogue["text_vectors"][moved])
