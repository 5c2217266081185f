"""tfrec: interaction tables and product text in, a recommender for TensorFlow Serving out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfrec.client import AsyncClient as AsyncClient
    from tfrec.client import Client as Client
    from tfrec.runs import Run as Run

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Run", "__version__", "load"]


def load(folder: str | Path) -> Run:
    """A trained run, to call and reuse its Keras models.

    Args:
        folder: runs/NAME.

    Returns:
        a :class:`tfrec.runs.Run`: ``run.model()`` is the Keras 3 two-tower model with its item and user tower,
        ``run.preprocessor`` maps raw strings to its tensors.

    Raises:
        ConfigError: the folder holds no run.

    Example:
        >>> model = tfrec.load("runs/ml100k").model()
        >>> model({"history": np.array([[0, 50, 181]]), "user": np.array([1])}).shape
        TensorShape([1, 3, 128])
    """
    from tfrec.runs import Run

    return Run.open(folder)


def __getattr__(name: str) -> Any:
    # TensorFlow takes seconds to import: only those who ask for it wait.
    if name in ("AsyncClient", "Client"):
        from tfrec import client

        return getattr(client, name)
    if name == "Run":
        from tfrec.runs import Run

        return Run
    raise AttributeError(f"module 'tfrec' has no attribute {name!r}")
