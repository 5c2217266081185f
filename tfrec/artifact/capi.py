"""Second witness: ``python -m tfrec.artifact.capi SAVED_MODEL CALLS [SITE]`` replays calls through TensorFlow's C API.

The process never imports TensorFlow's Python package: the C++ loader and session of libtensorflow_cc, which
TensorFlow Serving is built from, are all it has. SITE is a folder that another TensorFlow is installed in.
Reference: tensorflow/c/c_api.h, tensorflow/c/tf_tensor.h, tensorflow/c/tf_tstring.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from tfrec.artifact.calls import decode, difference
from tfrec.errors import ArtifactError
from tfrec.server.text_ops import text_op_libraries

_STRING = 7
_STRING_SIZE = 24  # sizeof(TF_TString)
_DTYPES = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "object": _STRING, "int64": 9,
    "bool": 10, "uint16": 17, "float16": 19, "uint32": 22, "uint64": 23,
}  # fmt: skip
_NAMES = {number: name for name, number in _DTYPES.items()}


class _Buffer(Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class _Output(Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (c_void_p, []),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_LoadLibrary": (c_void_p, [c_char_p, c_void_p]),
    "TF_GetOpList": (_Buffer, [c_void_p]),
    "TF_GetAllOpList": (POINTER(_Buffer), []),
    "TF_GetAllRegisteredKernels": (POINTER(_Buffer), [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_LoadSessionFromSavedModel": (
        c_void_p, [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p],
    ),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_SessionRun": (
        None,
        [c_void_p, c_void_p, POINTER(_Output), POINTER(c_void_p), c_int, POINTER(_Output), POINTER(c_void_p), c_int,
         c_void_p, c_int, c_void_p, c_void_p],
    ),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
}  # fmt: skip


class Library:
    """TensorFlow's C API in this process.

    Args:
        site: the folder that TensorFlow is installed in; None = where this Python finds it.

    Raises:
        ArtifactError: there is none.
    """

    def __init__(self, site: Path | None = None):
        self.site = site
        folder = _tensorflow_folder(site)
        try:
            for name in ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2"):
                self._library = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ArtifactError("TensorFlow's C library must load", str(error)) from error
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.status = c_void_p(self.TF_NewStatus())

    def __getattr__(self, name: str) -> Any:  # the C functions are set in __init__; this tells the type checker
        raise AttributeError(name)

    def check(self, what: str) -> None:
        """Raises ArtifactError with the library's words when the last call failed."""
        if self.TF_GetCode(self.status):
            raise ArtifactError(f"the C API must {what}", self.TF_Message(self.status).decode())

    def load_ops(self, file: Path) -> bytes:
        """Registers the ops of a library and returns them as a serialised OpList."""
        handle = self.TF_LoadLibrary(str(file).encode(), self.status)
        self.check(f"load {file.name}")
        return _bytes(self.TF_GetOpList(handle))

    def all_ops(self) -> bytes:
        """Every registered op, as a serialised OpList."""
        return _bytes(self.TF_GetAllOpList().contents)

    def all_kernels(self) -> bytes:
        """Every registered kernel, as a serialised KernelList."""
        return _bytes(self.TF_GetAllRegisteredKernels(self.status).contents)


class Session:
    """A SavedModel loaded through the C API with the tag serve; lives as long as the process."""

    def __init__(self, library: Library, path: Path):
        self._library = library
        self._graph = library.TF_NewGraph()
        tags = (c_char_p * 1)(b"serve")
        self._session = library.TF_LoadSessionFromSavedModel(
            library.TF_NewSessionOptions(), None, str(path).encode(), tags, 1, self._graph, None, library.status
        )
        library.check("load the SavedModel")

    def run(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        """Feeds and fetches tensors by name, as ``search_query:0``."""
        library = self._library
        values = (c_void_p * len(inputs))(*[_to_tensor(library, array) for array in inputs.values()])
        fetched = (c_void_p * len(outputs))()
        library.TF_SessionRun(
            self._session, None, self._places(list(inputs)), values, len(inputs),
            self._places(outputs), fetched, len(outputs), None, 0, None, library.status,
        )  # fmt: skip
        for value in values:
            library.TF_DeleteTensor(value)
        library.check("run the graph")
        arrays = [_to_array(library, tensor) for tensor in fetched if tensor]
        for tensor in fetched:
            library.TF_DeleteTensor(tensor)
        return arrays

    def _places(self, tensors: list[str]) -> Any:
        places = (_Output * len(tensors))()
        for place, tensor in zip(places, tensors, strict=True):
            name, _, index = tensor.partition(":")
            place.operation = self._library.TF_GraphOperationByName(self._graph, name.encode())
            if not place.operation:
                raise ArtifactError("a signature must name a tensor of the graph", tensor)
            place.index = int(index or 0)
        return places


def check(path: Path, calls: list[dict[str, Any]], site: Path | None = None) -> list[tuple[str, str]]:
    """Replays calls and returns a failure (where, message) per wrong answer."""
    library = Library(site)
    for file in text_op_libraries(site):
        library.load_ops(file)
    session, failures = Session(library, path), []
    for call in calls:
        outputs = call["outputs"]
        inputs = {tensor: decode(value) for tensor, value in call["inputs"].items()}
        try:
            got = session.run(inputs, [output["tensor"] for output in outputs.values()])
        except ArtifactError as error:
            failures.append((call["where"], str(error)))
            continue
        for (alias, output), value in zip(outputs.items(), got, strict=True):
            message = difference(decode(output["value"]), value)
            if message:
                failures.append((f"{call['where']}, output {alias}", message))
    if "tensorflow" in sys.modules:
        failures.append(("process", "the witness must not import tensorflow"))
    return failures


def _tensorflow_folder(site: Path | None) -> Path:
    if site is not None:
        return site / "tensorflow"
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise ArtifactError("TensorFlow must be installed", advice="pip install tensorflow")
    return Path(spec.origin).parent


def _bytes(buffer: _Buffer) -> bytes:
    return ctypes.string_at(buffer.data, buffer.length)


def _to_tensor(library: Library, array: np.ndarray) -> int:
    dtype = _DTYPES[array.dtype.name]
    data = b"" if dtype == _STRING else np.ascontiguousarray(array).tobytes()
    size = array.size * _STRING_SIZE if dtype == _STRING else len(data)
    dims = (c_int64 * array.ndim)(*array.shape)
    tensor: int = library.TF_AllocateTensor(dtype, dims, array.ndim, size)
    start = library.TF_TensorData(tensor)
    if dtype != _STRING:
        ctypes.memmove(start, data, size)
        return tensor
    for i, value in enumerate(array.ravel()):
        place = start + i * _STRING_SIZE
        library.TF_StringInit(place)
        library.TF_StringCopy(place, value, len(value))
    return tensor


def _to_array(library: Library, tensor: int) -> np.ndarray:
    shape = [library.TF_Dim(tensor, i) for i in range(library.TF_NumDims(tensor))]
    start, name = library.TF_TensorData(tensor), _NAMES[library.TF_TensorType(tensor)]
    if name != "object":
        return np.frombuffer(ctypes.string_at(start, library.TF_TensorByteSize(tensor)), name).reshape(shape)
    strings = np.empty(int(np.prod(shape)), object)
    for i in range(strings.size):
        place = start + i * _STRING_SIZE
        strings[i] = ctypes.string_at(library.TF_StringGetDataPointer(place), library.TF_StringGetSize(place))
    return strings.reshape(shape)


def main(path: str, calls: str, site: str = "") -> int:
    try:
        loaded = json.loads(Path(calls).read_text(encoding="utf-8"))
        failures = check(Path(path), loaded, Path(site) if site else None)
    except ArtifactError as error:
        failures = [("load", str(error))]
    print(json.dumps({"failures": failures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
