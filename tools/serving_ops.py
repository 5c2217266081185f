"""Writes tfrec/artifact/serving_ops.json: the ops that stock TensorFlow Serving links, by version.

    python tools/serving_ops.py

Stock TensorFlow Serving links TensorFlow core and, by SUPPORTED_TENSORFLOW_OPS in tensorflow_serving/model_servers/
BUILD, TF-Text's ops_lib and the decision forests' inference ops (left out here). TensorFlow Serving 2.18 builds
TF-Text 2.12.1, which has no RoundRobinTrim (says github.com/tensorflow/serving/pull/4057, a proposal to change that);
2.19 is taken to be the same, the safe side. The lists are the ops with a CPU kernel in the TensorFlow release of that
version and the ops of all libraries in TF-Text 2.12.1's wheel, read through the C API. Releases are installed by pip,
apart from this environment, into $TFREC_CACHE/tf-releases (or ~/.cache/tfrec/tf-releases); 5 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tfrec" / "artifact" / "serving_ops.json"
# TensorFlow Serving version → the TensorFlow and TF-Text that it is built from.
BUILT_FROM = {"2.18": ("2.18.1", "2.12.1"), "2.19": ("2.19.1", "2.12.1")}
# TF-Text wheel → the TensorFlow wheel that its libraries are built for.
TEXT_NEEDS = {"2.12.1": "2.12.1", "2.18.1": "2.18.1", "2.19.0": "2.19.1"}
_READ = """
import sys
from pathlib import Path
from tfrec.artifact.capi import Library
from tfrec.server.text_ops import text_op_libraries
site, kind, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
library = Library(site)
if kind == "text":
    for i, file in enumerate(text_op_libraries(site)):
        (out / str(i)).write_bytes(library.load_ops(file))
else:
    (out / "ops").write_bytes(library.all_ops())
    (out / "kernels").write_bytes(library.all_kernels())
"""


def main() -> int:
    text_ops = {text: read_text_ops(text) for text in {text for _, text in BUILT_FROM.values()}}
    ops = {version: read_core_ops(core) | text_ops[text] for version, (core, text) in BUILT_FROM.items()}
    common = frozenset.intersection(*ops.values())
    table = {
        "made_by": "tools/serving_ops.py",
        "built_from": {version: {"tensorflow": a, "tensorflow-text": b} for version, (a, b) in BUILT_FROM.items()},
        "common": sorted(common),
        "added": {version: sorted(names - common) for version, names in ops.items()},
    }
    beside = TARGET.with_suffix(".tmp")
    beside.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
    os.replace(beside, TARGET)
    print(f"{TARGET}: {len(common)} ops in every version; { ({v: len(n) for v, n in table['added'].items()}) } more")
    return 0


def release(tensorflow: str, text: str) -> Path:
    """The folder of an installed release, downloaded at first use.

    Raises:
        OSError: pip cannot install it.
    """
    cache = Path(os.environ.get("TFREC_CACHE") or Path.home() / ".cache" / "tfrec")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = cache / "tf-releases" / f"{tensorflow}-text{text}-{tag}"
    if folder.is_dir():
        return folder
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    packages = [f"tensorflow=={tensorflow}", f"tensorflow-text=={text}"]
    options = ["-q", "--no-deps", "--no-compile", "--only-binary", ":all:", "--target", str(beside)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
    os.replace(beside, folder)
    return folder


def read_text_ops(text: str) -> frozenset[str]:
    """The ops of TF-Text's libraries."""
    from tensorflow.core.framework.op_def_pb2 import OpList

    files = _read(release(TEXT_NEEDS[text], text), "text")
    return frozenset(op.name for content in files.values() for op in OpList.FromString(content).op)


def read_core_ops(tensorflow: str) -> frozenset[str]:
    """TensorFlow's ops that have a CPU kernel; the others are known by name and cannot run."""
    from tensorflow.core.framework.kernel_def_pb2 import KernelList
    from tensorflow.core.framework.op_def_pb2 import OpList

    text = next(text for text, core in TEXT_NEEDS.items() if core == tensorflow)
    files = _read(release(tensorflow, text), "core")
    kernels = KernelList.FromString(files["kernels"]).kernel
    runnable = {kernel.op for kernel in kernels if kernel.device_type in ("CPU", "DEFAULT")}
    return frozenset({op.name for op in OpList.FromString(files["ops"]).op} & runnable)


def _read(site: Path, kind: str) -> dict[str, bytes]:
    """Reads a release in a process of its own: two TensorFlows cannot share one."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", _READ, str(site), kind, folder], check=True, cwd=ROOT)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


if __name__ == "__main__":
    sys.exit(main())
