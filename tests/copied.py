"""Which variables of a SavedModel are copied with every request: those that are read whole and gathered from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")  # whose first input is no argument of the functions
_BOTH = {"ReadVariableOp", "ResourceGather"}


def copied(path: Path) -> list[str]:
    """Names of the variables, over all signatures together: one gather marks a variable for all of them."""
    graph = SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    uses: dict[str, set[str]] = defaultdict(set)
    seen: set[tuple[str, tuple[str, ...]]] = set()

    def follow(nodes: Iterable[Any], held: Mapping[str, str]) -> None:
        for node in nodes:
            given = [held.get(name.split(":")[0], "") for name in node.input if not name.startswith("^")]
            if node.op in _BOTH:
                assert given[0], f"{node.name} must read a variable that was followed"
                uses[given[0]].add(node.op)
            arguments = tuple(given[node.op in _BRANCHES :])
            for name in _called(node):
                once = "traced_save" in name or "initializer" in name
                if any(arguments) and (name, arguments) not in seen and not once:
                    seen.add((name, arguments))
                    inputs = functions[name].signature.input_arg
                    follow(functions[name].node_def, dict(zip((i.name for i in inputs), arguments, strict=True)))

    variables = {node.name: node.name for node in graph.node if node.op == "VarHandleOp"}
    follow([node for node in graph.node if node.op not in _BOTH], variables)
    return sorted(name for name, ops in uses.items() if ops == _BOTH)


def _called(node: Any) -> Iterable[str]:
    for value in node.attr.values():
        yield from [value.func.name] if value.HasField("func") else (function.name for function in value.list.func)
