"""Requests for a recommender's signatures and how their answers read, whatever carries them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from tfrec.client.results import Result
from tfrec.errors import ConfigError

Outputs = Mapping[str, Any]  # name → nested lists
_LARGEST = 2**31 - 1
_NO_LIMIT = 3.4028234663852886e38  # the largest float32
_WITH = "_with"  # signatures that take options
_PROBING = "_nprobe"  # signatures that are told how many buckets to look into
_OWN = {"item_ids", "scores", "reasons", "reason_weights"}  # every other output is a task


class Options(TypedDict, total=False):
    """What a recommender with a ranker takes beside the rest; what is left out is as the artefact says.

    weights: of the value formula, by task and "retrieval".
    diversity: of the answer, from 0 (by value alone) to 1.
    per_category: most items of one category; 0 = any number.
    min_price, max_price: bounds of the price.
    allow_categories: only items of these; none = of any.
    deny_categories: no item of these.
    """

    weights: Mapping[str, float]
    diversity: float
    per_category: int
    min_price: float
    max_price: float
    allow_categories: Sequence[str]
    deny_categories: Sequence[str]


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
        inputs: name → (nested lists of) strings, int32 or float32 numbers.
        outputs: names that an answer must have.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    read: Callable[[Outputs], list[Result]]


def recommend(
    form: BatchedForm | None,
    user_id: str,
    history: Sequence[str],
    exclude: Sequence[str],
    k: int,
    nprobe: int | None = None,
    **options: Unpack[Options],
) -> Call:
    """The k best items for a user."""
    inputs, ending = _person(form, user_id, history), ""
    if options:
        inputs, ending = inputs | _options(form, options), _WITH
    return _items("recommend" + ending, inputs, form, exclude, k, nprobe)


def search(
    form: BatchedForm | None,
    query: str,
    exclude: Sequence[str],
    k: int,
    user_id: str = "",
    history: Sequence[str] = (),
    nprobe: int | None = None,
    **options: Unpack[Options],
) -> Call:
    """The k items that fit a text best; with a ranker also for whom."""
    inputs, ending = {"query": [query]}, ""
    if options or user_id or history:
        inputs, ending = {**inputs, **_person(form, user_id, history), **_options(form, options)}, _WITH
    return _items("search" + ending, inputs, form, exclude, k, nprobe)


def similar(form: BatchedForm | None, item_id: str, exclude: Sequence[str], k: int, nprobe: int | None = None) -> Call:
    """The k items most like one item."""
    return _items("similar", {"item_id": [item_id]}, form, exclude, k, nprobe)


def rank(
    form: BatchedForm | None,
    user_id: str,
    history: Sequence[str],
    item_ids: Sequence[str],
    weights: Mapping[str, float] | None = None,
    context: Mapping[str, str | float] | None = None,
) -> Call:
    """The given items, best first."""
    items = _ids("item_ids", item_ids)

    def read(outputs: Outputs) -> list[Result]:
        cut = {name: [rows[0][: len(items)]] for name, rows in outputs.items()}  # a batching server pads
        return sorted(_read_items({"item_ids": [items], **cut}, keep=True), key=lambda result: -result.score)

    about = {name: [value if isinstance(value, str) else float(value)] for name, value in (context or {}).items()}
    inputs, ending = {**about, **_person(form, user_id, history), "item_ids": [items]}, ""
    if weights:
        inputs, ending = inputs | _weights(form, weights), _WITH
    return Call("rank" + ending, inputs, ("scores",), read)


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


def _items(
    signature: str,
    inputs: dict[str, Any],
    form: BatchedForm | None,
    exclude: Sequence[str],
    k: int,
    nprobe: int | None,
) -> Call:
    numbers = {"k": k} | ({} if nprobe is None else {"nprobe": nprobe})
    for name, value in numbers.items():
        if not -_LARGEST <= value <= _LARGEST:
            raise ConfigError(f"{name} must be below 2147483648, an int32", value)
    inputs |= {"exclude": [_exclude(form, exclude)]}
    inputs |= {name: value if form is None else [value] for name, value in numbers.items()}
    signature += "" if nprobe is None else _PROBING
    return Call(signature, inputs, ("item_ids", "scores"), _read_items)


def _read_items(outputs: Outputs, keep: bool = False) -> list[Result]:
    items, scores = outputs["item_ids"][0], _float32(outputs["scores"][0])
    tasks = {name: _float32(rows[0]) for name, rows in outputs.items() if name not in _OWN}
    told = "reasons" in outputs
    why = outputs["reasons"][0] if told else [""] * len(items)
    how = _float32(outputs["reason_weights"][0]) if told else [0.0] * len(items)
    return [
        Result(item, score, {name: values[i] for name, values in tasks.items()}, why[i], how[i])
        for i, (item, score) in enumerate(zip(items, scores, strict=True))
        if item or keep  # "" fills a short answer
    ]


def _person(form: BatchedForm | None, user_id: str, history: Sequence[str]) -> dict[str, Any]:
    return {"user_id": [user_id], "history": [_history(form, history)]}


def _options(form: BatchedForm | None, options: Options) -> dict[str, Any]:
    """Every option: JSON and batches want all inputs of a signature; those left out change nothing."""
    numbers: dict[str, Any] = {
        "diversity": float(options.get("diversity", 0.0)),
        "per_category": int(options.get("per_category", 0)),
        "min_price": float(options.get("min_price", 0.0)),
        "max_price": float(options.get("max_price", _NO_LIMIT)),
    }
    numbers = {name: value if form is None else [value] for name, value in numbers.items()}
    allow, deny = options.get("allow_categories", ()), options.get("deny_categories", ())
    lists = {"allow_categories": [_names(form, allow)], "deny_categories": [_names(form, deny)]}
    return {**numbers, **lists, **_weights(form, options.get("weights", {}))}


def _weights(form: BatchedForm | None, weights: Mapping[str, float]) -> dict[str, Any]:
    names = _names(form, list(weights)) or [""]  # "" names no term; an empty list would have no type
    return {"weight_names": [names], "weights": [[float(weights.get(name, 0.0)) for name in names]]}


def _names(form: BatchedForm | None, names: Sequence[str]) -> list[str]:
    names = _ids("names of categories and weights", names)
    if form is None:
        return names
    if len(names) > form.exclude:
        raise ConfigError(f"a batched request must name at most {form.exclude} categories or weights", len(names))
    return _filled(names, form.exclude, "")


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
