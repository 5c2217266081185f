"""Requests for a recommender's signatures and how their answers read, whatever carries them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfrec.client.results import Result
from tfrec.errors import ConfigError

Outputs = Mapping[str, Any]  # name → nested lists
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class BatchedForm:
    """The form of requests that a server with ``--enable_batching`` can join: fixed widths, never empty.

    TF Serving joins tensors of one width along the rows; it refuses empty tensors and pads others with their first
    element. The card of an artefact states the form: ``BatchedForm(**card["batched_requests"])``. ``rank`` sends its
    items as they are: ask with equally many, or set pad_variable_length_inputs.

    Args:
        history, exclude: widths. Of a longer history the newest items are sent.
        filler: id of no item.

    Raises:
        ConfigError: a width is below 1.
    """

    history: int
    exclude: int
    filler: str = ""

    def __post_init__(self) -> None:
        if self.history < 1 or self.exclude < 1:
            raise ConfigError("the widths of batched requests must be at least 1", self)


@dataclass(frozen=True)
class Model:
    """Which of a server's models is asked.

    Args:
        name: under which it is served.
        version: None = the one that the server chooses.
        label: as the server's configuration has it; "" = none.

    Raises:
        ConfigError: both are given, or the version is no int64.
    """

    name: str
    version: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.version is not None and self.label:
            raise ConfigError("a client asks for a version or for a label", f"{self.version} and {self.label!r}")
        if self.version is not None and not 0 <= self.version < 2**63:
            raise ConfigError("a version must be an int64 from 0", self.version)

    def __str__(self) -> str:
        return (
            self.name
            + (f" version {self.version}" if self.version is not None else "")
            + (f" label {self.label}" if self.label else "")
        )


@dataclass(frozen=True)
class Call:
    """A request and the reader of its answer.

    Args:
        inputs: name → (nested lists of) strings, or int32 numbers.
        outputs: names that are read.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    read: Callable[[Outputs], list[Result]]


def recommend(form: BatchedForm | None, user_id: str, history: Sequence[str], exclude: Sequence[str], k: int) -> Call:
    """The k best items for a user."""
    return _items("recommend", {"user_id": [user_id], "history": [_history(form, history)]}, form, exclude, k)


def search(form: BatchedForm | None, query: str, exclude: Sequence[str], k: int) -> Call:
    """The k items that fit a text best."""
    return _items("search", {"query": [query]}, form, exclude, k)


def similar(form: BatchedForm | None, item_id: str, exclude: Sequence[str], k: int) -> Call:
    """The k items most like one item."""
    return _items("similar", {"item_id": [item_id]}, form, exclude, k)


def rank(form: BatchedForm | None, user_id: str, history: Sequence[str], item_ids: Sequence[str]) -> Call:
    """The given items, best first."""
    items = _ids("item_ids", item_ids)

    def read(outputs: Outputs) -> list[Result]:
        scores = _float32(outputs["scores"][0])[: len(items)]  # a batching server pads to the longest request
        results = [Result(item, score) for item, score in zip(items, scores, strict=True)]
        return sorted(results, key=lambda result: -result.score)

    inputs = {"user_id": [user_id], "history": [_history(form, history)], "item_ids": [items]}
    return Call("rank", inputs, ("scores",), read)


def choose(
    form: BatchedForm | None,
    *,
    user_id: str = "",
    history: Sequence[str] = (),
    text: str = "",
    item_id: str = "",
    item_ids: Sequence[str] = (),
    exclude: Sequence[str] = (),
    k: int = 10,
) -> Call:
    """A text is searched, an item_id gets similar items, item_ids are ranked, else items are recommended.

    Raises:
        ConfigError: more than one of text, item_id and item_ids is given.
    """
    given = [name for name, value in (("text", text), ("item_id", item_id), ("item_ids", item_ids)) if value]
    if len(given) > 1:
        raise ConfigError("a query takes one of text, item_id and item_ids", " and ".join(given))
    if text:
        return search(form, text, exclude, k)
    if item_id:
        return similar(form, item_id, exclude, k)
    if item_ids:
        return rank(form, user_id, history, item_ids)
    return recommend(form, user_id, history, exclude, k)


def _items(signature: str, inputs: dict[str, Any], form: BatchedForm | None, exclude: Sequence[str], k: int) -> Call:
    if not -_LARGEST <= k <= _LARGEST:
        raise ConfigError("k must be below 2147483648, an int32", k)
    inputs |= {"exclude": [_exclude(form, exclude)], "k": k if form is None else [k]}
    return Call(signature, inputs, ("item_ids", "scores"), _read_items)


def _read_items(outputs: Outputs) -> list[Result]:
    pairs = zip(outputs["item_ids"][0], _float32(outputs["scores"][0]), strict=True)
    return [Result(item, score) for item, score in pairs if item]  # "" fills a short answer


def _float32(scores: Sequence[float]) -> list[float]:
    # JSON carries the shortest decimals that name a float32.
    return array("f", scores).tolist()


def _history(form: BatchedForm | None, history: Sequence[str]) -> list[str]:
    ids = _ids("history", history)
    return ids if form is None else _filled(ids[-form.history :], form.history, form.filler)


def _exclude(form: BatchedForm | None, exclude: Sequence[str]) -> list[str]:
    ids = _ids("exclude", exclude)
    if form is None:
        return ids
    if len(ids) > form.exclude:
        raise ConfigError(f"a batched request must exclude at most {form.exclude} items", len(ids))
    return _filled(ids, form.exclude, form.filler)


def _filled(ids: list[str], width: int, filler: str) -> list[str]:
    return [filler] * (width - len(ids)) + ids


def _ids(name: str, ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str) or not all(isinstance(item, str) for item in ids):
        raise ConfigError(f"{name} must be a list of ids, each a string", ids)
    return list(ids)
