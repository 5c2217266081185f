"""Imports TensorFlow for a command line, without the lines that it greets with."""

from __future__ import annotations

import os
import sys
import tempfile

_GREETINGS = ("WARNING: All log messages before", "I0000 ", "To enable the following instructions")


def import_tensorflow() -> None:
    """Imports TensorFlow; of what it writes to stderr meanwhile, only its greetings are dropped.

    They come before TensorFlow reads TF_CPP_MIN_LOG_LEVEL, so that no setting of its own turns them off.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+") as captured:
        os.dup2(captured.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(before, 2)
            os.close(before)
            captured.seek(0)
            sys.stderr.writelines(line for line in captured if not line.startswith(_GREETINGS))
