"""A SavedModel's file → its MetaGraphDef and a C graph, without holding the interpreter lock for long.

Parsing a graph into Python messages, or importing it in one piece, stops every other thread for tens of milliseconds:
the graph stays bytes, split at the first level of its fields, and its functions are imported a few at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.client import pywrap_tf_session as c_api

from tfrec.messages import message_classes
from tfrec.server.status import RequestError

_BITE = 2**16  # bytes of functions that are imported together
# Fields that are not named here are kept as they came.
_SHALLOW = message_classes(
    "tfrec.graph",
    {
        "SavedModel": {2: "repeated MetaGraph meta_graphs"},
        "MetaInfo": {4: "repeated string tags"},
        "MetaGraph": {1: "MetaInfo meta_info_def", 2: "bytes graph_def", 7: "bytes object_graph_def"},
        "Graph": {1: "repeated bytes node", 2: "bytes library"},
        "Library": {1: "repeated bytes function"},
        "Node": {2: "string op"},
        "Signature": {1: "string name"},
        "Function": {1: "Signature signature"},
    },
)


def read_meta_graph(path: Path, tags: Sequence[str] = ("serve",)) -> tuple[MetaGraphDef, list[bytes]]:
    """The MetaGraphDef of a SavedModel's folder with exactly these tags, and its graph apart.

    Returns:
        the MetaGraphDef without graph, and the graph as serialized GraphDefs for import_graph: nodes, then functions.

    Raises:
        RequestError: there is none, in the words of the C++ loader.
    """
    file, model = _read(path)
    for meta_graph in model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            graph_def = meta_graph.graph_def
            meta_graph.ClearField("graph_def")
            meta_graph.ClearField("object_graph_def")  # Python's loader alone reads it
            try:
                return MetaGraphDef.FromString(meta_graph.SerializeToString()), _split(graph_def)
            except DecodeError as error:
                raise _damaged(file, "binary") from error
    raise RequestError(
        "NOT_FOUND",
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect available tag-sets "
        "in the SavedModel, please use the SavedModel CLI: `saved_model_cli`",
    )


def import_graph(graph: Any, parts: Iterable[bytes]) -> None:
    """Puts the graph of read_meta_graph into an empty C graph.

    Raises:
        OpError: of TensorFlow, for a graph that it refuses.
    """
    for part in parts:
        options, buffer = c_api.TF_NewImportGraphDefOptions(), c_api.TF_NewBufferFromString(part)
        try:
            c_api.TF_DeleteImportGraphDefResults(c_api.TF_GraphImportGraphDefWithResults(graph, buffer, options))
        finally:
            c_api.TF_DeleteBuffer(buffer)
            c_api.TF_DeleteImportGraphDefOptions(options)
        time.sleep(0)  # or the interpreter lock is not handed over until the last part is in: 40 ms of a BERT


def _split(graph_def: bytes) -> list[bytes]:
    """A graph of the nodes, then graphs of a few functions: so no shapes of the called functions are inferred yet."""
    whole = _SHALLOW["Graph"].FromString(graph_def)
    library = _SHALLOW["Library"].FromString(whole.library)
    names = {_SHALLOW["Function"].FromString(function).signature.name for function in library.function}
    if any(_SHALLOW["Node"].FromString(node).op in names for node in whole.node):
        return [graph_def]  # TensorFlow 1 calls a function as an operation, which must be known
    whole.ClearField("library")
    nodes = whole.SerializeToString()
    whole.ClearField("node")
    return [nodes, *_bites(whole, library)]


def _bites(empty: Any, library: Any) -> Iterator[bytes]:
    functions, size = list(library.function), 0
    library.ClearField("function")  # the gradients stay, for the first bite
    for function in functions:
        library.function.append(function)
        size += len(function)
        if size > _BITE:
            empty.library, size = library.SerializeToString(), 0
            yield empty.SerializeToString()
            library.Clear()
    empty.library = library.SerializeToString()
    yield empty.SerializeToString()


def _read(path: Path) -> tuple[Path, Any]:
    binary, text = path / "saved_model.pb", path / "saved_model.pbtxt"
    try:
        if binary.exists():
            return binary, _SHALLOW["SavedModel"].FromString(binary.read_bytes())
        if text.exists():
            parsed = text_format.Parse(text.read_text(encoding="utf-8"), SavedModel())
            return text, _SHALLOW["SavedModel"].FromString(parsed.SerializeToString())
    except DecodeError as error:
        raise _damaged(binary, "binary") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise _damaged(text, "text") from error
    except OSError as error:
        raise RequestError("FAILED_PRECONDITION", f"{error.filename}; {error.strerror}") from error
    raise RequestError(
        "NOT_FOUND",
        f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}. Check that the directory "
        "exists and that you have the right permissions for accessing it.",
    )


def _damaged(file: Path, kind: str) -> RequestError:
    return RequestError("DATA_LOSS", f"Can't parse {file} as {kind} proto")
