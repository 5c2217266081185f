"""The exception tree of tfrec.

    TfrecError                 exit 1: something that a user can act on
    ├── ConfigError            exit 2: a setting or a command line
    ├── DataError              a table, a column, a split
    ├── EncoderError           a text encoder's folder, weights or vocabulary
    ├── TrainingError          a model that cannot be trained or resumed
    │   └── RestartError       exit 75: training was broken off, and the same command continues it
    ├── ArtifactError          an export that cannot be written, read or trusted
    └── ServerError            a server that cannot start or be reached
        └── client.CallError   a call that was refused or not answered

A message has three parts: the rule, what was received, what to do about it.
"""

from __future__ import annotations

from typing import Any

_ABSENT = object()


class TfrecError(Exception):
    """A failure with one clear sentence: ``rule; got received. Advice``.

    Args:
        rule: what must hold, without a full stop.
        received: what was found instead; left out of the text when absent.
        advice: what to do; left out of the text when empty.
    """

    exit_code = 1

    def __init__(self, rule: str, received: Any = _ABSENT, advice: str = ""):
        text = rule if received is _ABSENT else f"{rule}; got {received!r}"
        super().__init__(f"{text}. {advice}" if advice else text)


class ConfigError(TfrecError):
    """A setting or command line that cannot be used."""

    exit_code = 2


class DataError(TfrecError):
    """A table that breaks a rule."""


class EncoderError(TfrecError):
    """A text encoder that cannot be found or read."""


class TrainingError(TfrecError):
    """A model that cannot be trained or resumed."""


class RestartError(TrainingError):
    """A training that was broken off where the same command continues it."""

    exit_code = 75


class ArtifactError(TfrecError):
    """An export that cannot be written, read or trusted."""


class ServerError(TfrecError):
    """A server that cannot start or be reached."""
