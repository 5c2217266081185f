"""JSON text as TensorFlow Serving's parser (RapidJSON) reads and writes it.

Reference: rapidjson/reader.h, rapidjson/error/en.h, rapidjson/prettywriter.h.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tfrec.server.status import invalid

_SPACE = re.compile(rb"[ \t\n\r]*")
_NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?P<fraction>\.\d*)?(?P<exponent>[eE][+-]?\d*)?")
_WORDS = (b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity", b"Inf", b"-Inf", b"-NaN")
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_ESCAPES = re.compile(r"\\\\|\\u00[01][0-9a-f]")  # an escaped backslash is no beginning of an escape
_INDENT = 4


def parse(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        RequestError: INVALID_ARGUMENT with RapidJSON's words and offset.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.removeprefix(_BOM).decode("utf-8", "surrogateescape")
        document = json.loads(text, object_pairs_hook=_members)
    except (ValueError, RecursionError) as error:
        _Scanner(body).explain()
        raise invalid("JSON Parse error: Number too big to be stored in double. at offset: 0") from error
    _check_surrogates(body, document)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {describe(document)} Is not object")
    return document


class Repeated(dict[str, Any]):
    """An object that has a key more than once: its first value is found, as by RapidJSON's FindMember.

    Args:
        pairs: of the text, in its order.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]):
        super().__init__()
        for key, value in pairs:
            self.setdefault(key, value)
        self.last = dict(pairs)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeated(pairs)


def _check_surrogates(body: bytes, document: Any) -> None:
    """Python lets half a surrogate pair pass."""
    escape = _SURROGATE.search(body)
    if escape is None:
        return
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        text = f"JSON Parse error: The surrogate pair in string is invalid. at offset: {escape.start()}"
        raise invalid(text) from error


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", Repeated: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def describe(value: Any) -> str:
    """A value as error messages show it."""
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return decimals(np.array([value], np.float32 if float(single) == value or np.isfinite(single) else float))[0]
    return quoted(value, _INDENT)


def quoted(value: Any, indent: int | None = None) -> str:
    """JSON text, with control characters in capital digits."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _ESCAPES.sub(lambda found: found[0][:2] + found[0][2:].upper(), text)


def decimals(values: np.ndarray) -> list[str]:
    """The shortest of six and of all digits that reads back as the same number, with a point or an exponent.

    Args:
        values: float32 or float64, one axis.
    """
    texts = [f"{value:g}" for value in values.tolist()]
    digits = 9 if values.dtype == np.float32 else 17
    with np.errstate(over="ignore"):
        changed = np.array(texts, float).astype(values.dtype) != values
    for i in np.flatnonzero(changed & np.isfinite(values)):
        texts[i] = f"{float(values[i]):.{digits}g}"
    return [_pointed(text) for text in texts]


def _pointed(text: str) -> str:
    if text in _NOT_FINITE:
        return _NOT_FINITE[text]
    return text if "." in text or "e" in text else text + ".0"


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class _Scanner:
    """Walks through a malformed text to say what RapidJSON would say; raises RequestError."""

    def __init__(self, text: bytes):
        self._text, self._at = text.removeprefix(_BOM), 0

    def explain(self) -> None:
        try:
            self._space()
            if self._at >= len(self._text):
                self._fail("The document is empty.")
            self._value()
            self._space()
            if self._at < len(self._text):
                self._fail("The document root must not be followed by other values.")
        except RecursionError:
            self._fail("Terminate parsing due to Handler error.")

    def _fail(self, text: str, at: int | None = None) -> NoReturn:
        raise invalid(f"JSON Parse error: {text} at offset: {self._at if at is None else at}")

    def _space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _next(self) -> bytes:
        return self._text[self._at : self._at + 1]

    def _take(self, character: bytes) -> bool:
        if self._next() != character:
            return False
        self._at += 1
        return True

    def _value(self) -> None:
        first = self._next()
        if first == b"{":
            self._object()
        elif first == b"[":
            self._array()
        elif first == b'"':
            self._string()
        elif first.isdigit() or (first == b"-" and self._text[self._at + 1 : self._at + 2].isdigit()):
            self._number()
        else:
            self._word()

    def _word(self) -> None:
        for word in _WORDS:
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return
        # RapidJSON stops behind what still fitted the word that the first letter announces.
        likely = next((word for word in _WORDS if self._next() and word.startswith(self._next())), b"")
        while likely and self._next() == likely[:1]:
            likely, self._at = likely[1:], self._at + 1
        self._fail("Invalid value.")

    def _number(self) -> None:
        found = _NUMBER.match(self._text, self._at)
        assert found is not None  # the caller saw a digit
        self._at = found.end()
        if found["fraction"] == b".":
            self._fail("Miss fraction part in number.", found.end("fraction"))
        if found["exponent"] and not found["exponent"][-1:].isdigit():
            self._fail("Miss exponent in number.")

    def _object(self) -> None:
        self._at += 1
        self._space()
        if self._take(b"}"):
            return
        while True:
            if self._next() != b'"':
                self._fail("Missing a name for object member.")
            self._string()
            self._space()
            if not self._take(b":"):
                self._fail("Missing a colon after a name of object member.")
            self._space()
            self._value()
            self._space()
            if self._take(b"}"):
                return
            if not self._take(b","):
                self._fail("Missing a comma or } after an object member.")
            self._space()

    def _array(self) -> None:
        self._at += 1
        self._space()
        if self._take(b"]"):
            return
        while True:
            self._value()
            self._space()
            if self._take(b"]"):
                return
            if not self._take(b","):
                self._fail("Missing a comma or ] after an array element.")
            self._space()

    def _string(self) -> None:
        start = self._at
        self._at += 1
        while True:
            found = _PLAIN.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._take(b'"'):
                return
            if self._take(b"\\"):
                self._escape()
            elif self._next() in (b"", b"\0"):
                self._fail("Missing a closing quotation mark in string.", start)
            else:
                self._fail("Invalid encoding in string.")

    def _escape(self) -> None:
        backslash = self._at - 1
        if self._take(b"u"):
            if not _HEX.match(self._text, self._at):
                self._fail("Incorrect hex digit after \\u escape in string.", backslash)
            self._at += 4
        elif self._next() and self._next() in b'"\\/bfnrt':
            self._at += 1
        else:
            self._fail("Invalid escape character in string.", backslash)
