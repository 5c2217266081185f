"""How often a call is tried, how long it waits in between, and how its failure reads."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from tfrec.errors import ConfigError, ServerError


class CallError(ServerError):
    """A call that a server refused or did not answer.

    Args:
        code: gRPC's name of the status, over REST too.
    """

    def __init__(self, rule: str, received: str, advice: str, code: str):
        super().__init__(rule, received, advice)
        self.code = code


class RefusedError(Exception):
    """A status that is not OK, as a transport found it."""

    def __init__(self, code: str, words: str):
        super().__init__(f"{code}: {words}")
        self.code = code


@dataclass(frozen=True)
class Retry:
    """Tries again while a server is UNAVAILABLE, never after another failure.

    Before attempt n + 1 it waits uniform(0, min(longest_pause, first_pause · 2ⁿ⁻¹)) seconds, unless the deadline
    comes first. Every signature only reads, so that asking twice does no harm.

    Args:
        attempts: at most so many, the first included; 1 = no retry.
        first_pause, longest_pause: seconds.

    Raises:
        ConfigError: attempts below 1, or a negative pause.

    Reference: Brooker, Exponential Backoff And Jitter (2015), "full jitter".
    """

    attempts: int = 5
    first_pause: float = 0.1
    longest_pause: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_pause < 0 or self.longest_pause < 0:
            raise ConfigError("retries need at least 1 attempt and pauses from 0 seconds", self)

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures."""
        return random.uniform(0, min(self.longest_pause, self.first_pause * 2 ** (failures - 1)))


class Attempts:
    """The attempts of one call until its deadline.

    Args:
        asked: what was asked of whom, for the error.
        timeout: seconds for all attempts and pauses together.
    """

    def __init__(self, asked: str, retry: Retry, timeout: float):
        self._asked, self._retry, self._timeout = asked, retry, timeout
        self._deadline, self._failures = time.monotonic() + timeout, 0
        self._before: RefusedError | None = None

    def seconds_left(self) -> float:
        """Until the deadline, at least 0."""
        return max(self._deadline - time.monotonic(), 0.0)

    def pause_after(self, refusal: RefusedError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            CallError: there is none; carries the server's words.
        """
        self._failures += 1
        pause = self._retry.pause(self._failures)
        last = self._failures == self._retry.attempts or pause >= self.seconds_left()
        if refusal.code == "UNAVAILABLE" and not last:
            self._before = refusal
            return pause
        advice = {
            "UNAVAILABLE": "Start the server or correct the address",
            "DEADLINE_EXCEEDED": f"Raise the timeout of {self._timeout} s or look at the server's load",
        }.get(refusal.code, "")
        words = str(refusal)
        if self._before and self._before.code != refusal.code:
            words += f"; before it {self._before}"  # the deadline says less than what used it up
        raise CallError(f"{self._asked} must answer", words, advice, refusal.code) from refusal
