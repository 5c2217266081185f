"""What a client answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AVAILABLE = "AVAILABLE"


@dataclass(frozen=True)
class Result:
    """One recommended item; higher scores are better and compare within one answer only.

    Args:
        tasks: what a ranker behind retrieval says of the item, by task; none without one.
        reason: why a ranker's candidate was found, as "history:ITEM", "query" or "popularity"; "" = not told.
        reason_weight: how strong the reason is: a cosine, or the share of the most popular item's events.
    """

    item_id: str
    score: float
    tasks: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    reason_weight: float = 0.0


@dataclass(frozen=True)
class VersionStatus:
    """A version that a server knows.

    Args:
        state: START, LOADING, AVAILABLE, UNLOADING, END or UNKNOWN.
        error: why it could not be loaded; "" = no error.
    """

    version: int
    state: str
    error: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Args:
        dtype: TensorFlow's name, as DT_STRING.
        shape: -1 = any size; None = any rank.
    """

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class ModelInfo:
    """A served model.

    Args:
        versions: those that the server knows, whatever their state.
        signatures: of the version that answers; none while no version is available.
    """

    name: str
    versions: tuple[VersionStatus, ...]
    signatures: Mapping[str, Signature]

    @property
    def available(self) -> tuple[int, ...]:
        """The versions that answer, ascending."""
        return tuple(sorted(status.version for status in self.versions if status.state == AVAILABLE))
