"""The op lint: which ops a SavedModel uses, and which ones stock TensorFlow Serving links.

The lists in serving_ops.json are made by tools/serving_ops.py, never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from tfrec.errors import ArtifactError


def serving_ops(version: str) -> frozenset[str]:
    """Ops that TensorFlow Serving links and has a CPU kernel for.

    Args:
        version: as "2.18". A version newer than the newest list is held to that list, since ops are rarely removed.

    Raises:
        ArtifactError: the version is older than every list.
    """
    table = json.loads(resources.files("tfrec.artifact").joinpath("serving_ops.json").read_text(encoding="utf-8"))
    known = [name for name in table["added"] if _number(name) <= _number(version)]
    if not known:
        raise ArtifactError(
            f"the TensorFlow Serving version must be at least {min(table['added'], key=_number)}", version
        )
    return frozenset(table["common"]) | frozenset(table["added"][max(known, key=_number)])


def used_ops(meta_graph: Any) -> dict[str, set[str]]:
    """Every op of a MetaGraphDef's graph and function library, with the signatures that reach it (perhaps none)."""
    library = {function.signature.name: function.node_def for function in meta_graph.graph_def.library.function}
    used: dict[str, set[str]] = {}
    for nodes in [meta_graph.graph_def.node, *library.values()]:
        for node in nodes:
            if node.op not in library:
                used.setdefault(node.op, set())
    for name, signature in meta_graph.signature_def.items():
        for op in _reachable(meta_graph.graph_def.node, library, [info.name for info in signature.outputs.values()]):
            used[op].add(name)
    return used


def missing_ops(used: Mapping[str, Iterable[str]], version: str) -> dict[str, list[str]]:
    """Those of the used ops that a TensorFlow Serving version does not run, with the signatures that reach them."""
    linked = serving_ops(version)
    return {op: sorted(names) for op, names in sorted(used.items()) if op not in linked}


def _reachable(nodes: Any, library: Mapping[str, Any], outputs: list[str]) -> set[str]:
    by_name = {node.name: node for node in nodes}
    names = [_node(output) for output in outputs]
    seen: set[str] = set()
    ops: set[str] = set()
    functions: set[str] = set()
    while names:
        node = by_name.get(names.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        names += [_node(source) for source in node.input]
        ops |= _ops_of(node, library, functions)
    return ops


def _ops_of(node: Any, library: Mapping[str, Any], seen: set[str]) -> set[str]:
    """The node's op, and every op of the functions that it calls."""
    ops: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        called = _called(current)
        if current.op in library:
            called.append(current.op)
        else:
            ops.add(current.op)
        for name in called:
            if name in library and name not in seen:
                seen.add(name)
                waiting += library[name]
    return ops


def _called(node: Any) -> list[str]:
    called = [value.func.name for value in node.attr.values() if value.HasField("func")]
    return called + [function.name for value in node.attr.values() for function in value.list.func]


def _node(reference: str) -> str:
    return reference.lstrip("^").split(":")[0]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
