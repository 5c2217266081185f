"""First witness: ``python -m tfrec.artifact.session_check SAVED_MODEL CALLS`` replays the golden requests.

Runs in a process of its own that never imports tensorflow_text, as a TensorFlow Serving session would, prints a
JSON report, and writes the same calls with tensor names to CALLS for the second witness.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tfrec.artifact.calls import difference, encode
from tfrec.artifact.golden import read_golden
from tfrec.artifact.ops import used_ops
from tfrec.errors import ArtifactError, TfrecError
from tfrec.server.servable import RequestError, Servable, Signature, complete_inputs, read_signatures
from tfrec.server.tensors import to_array

Arrays = dict[str, np.ndarray]


def check(path: Path) -> dict[str, Any]:
    """Everything that the first witness finds: failures, golden requests per signature, ops, calls."""
    meta_graph = read_meta_graph(path)
    signatures, failures, golden = read_signatures(meta_graph), [], []
    try:
        golden = _golden_calls(path)
    except ArtifactError as error:
        failures.append(("golden requests", str(error)))
    names = [name for name, _, _ in golden]
    report: dict[str, Any] = {
        "failures": [*failures, *((f"signature {s}", "has no golden request") for s in signatures if s not in names)],
        "golden": {name: names.count(name) for name in signatures},
        "ops": {op: sorted(users) for op, users in used_ops(meta_graph).items()},
        "calls": [],
    }
    try:
        servable = Servable(path)
    except TfrecError as error:
        report["failures"].append(("load", str(error)))
        return report
    for number, (name, inputs, expected) in enumerate(golden):
        where = f"signature {name}, request {number}"
        try:
            report["failures"] += compare(where, expected, servable.run(name, inputs))
            report["calls"].append(_call(where, signatures[name], inputs, expected))
        except RequestError as error:
            report["failures"].append((where, f"{error.code}: {error}"))
    servable.close()
    return report


def read_meta_graph(path: Path) -> MetaGraphDef:
    """The MetaGraphDef with the tag serve.

    Raises:
        ArtifactError: there is none.
    """
    file = path / "saved_model.pb"
    try:
        model = SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise ArtifactError("an artefact must hold a readable saved_model.pb", str(file), str(error)) from error
    for meta_graph in model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == {"serve"}:
            return meta_graph
    raise ArtifactError("a SavedModel must have a graph with the tag serve", str(file))


def compare(where: str, expected: Arrays, got: Arrays) -> list[tuple[str, str]]:
    """A failure per output that is absent, new or different."""
    failures = [(f"{where}, output {alias}", "is in one answer only") for alias in expected.keys() ^ got.keys()]
    for alias in sorted(expected.keys() & got.keys()):
        message = difference(expected[alias], got[alias])
        if message:
            failures.append((f"{where}, output {alias}", message))
    return failures


def _golden_calls(path: Path) -> list[tuple[str, Arrays, Arrays]]:
    return [
        (log.request.model_spec.signature_name, _arrays(log.request.inputs), _arrays(log.response.outputs))
        for log in read_golden(path)
    ]


def _arrays(tensors: Any) -> Arrays:
    return {alias: to_array(proto) for alias, proto in tensors.items()}


def _call(where: str, signature: Signature, inputs: Arrays, expected: Arrays) -> dict[str, Any]:
    feeds = complete_inputs(signature, inputs)
    return {
        "where": where,
        "inputs": {signature.inputs[alias].tensor: encode(value) for alias, value in feeds.items()},
        "outputs": {
            alias: {"tensor": signature.outputs[alias].tensor, "value": encode(value)}
            for alias, value in expected.items()
            if alias in signature.outputs
        },
    }


def main(path: str, calls: str) -> int:
    try:
        report = check(Path(path))
    except TfrecError as error:
        report = {"failures": [("artefact", str(error))], "golden": {}, "ops": {}, "calls": []}
    if "tensorflow_text" in sys.modules:
        report["failures"].append(("process", "the witness must not import tensorflow_text"))
    Path(calls).write_text(json.dumps(report.pop("calls")), encoding="utf-8")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
