"""Where TF-Text keeps its op libraries; found by path, so that nothing is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def text_op_libraries(site: Path | None = None) -> list[Path]:
    """TF-Text's op libraries, or none where it is not installed.

    Args:
        site: the folder that packages are installed in; None = where this Python finds them.
    """
    if site is not None:
        package = site / "tensorflow_text"
    else:
        spec = importlib.util.find_spec("tensorflow_text")
        if spec is None or spec.origin is None:
            return []
        package = Path(spec.origin).parent
    return sorted((package / "python" / "ops").glob("*.so"))
