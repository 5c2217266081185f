"""What serving adds to a run of the model: latency of Predict above an echo, by the Session run itself.

The median latency of Predict on an MLP of three layers of 64 (one row, one client) minus that of a Python gRPC server
that echoes the same message, divided by the median of ``tf.compat.v1.Session``'s callable on the same SavedModel with
TensorFlow's default options, which is what TensorFlow Serving runs. The server itself runs the graph in the caller's
thread; that time is printed too. The two servers are processes of their own and are asked in turn.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
import tensorflow as tf
from common import arguments, median_seconds, report
from serving import PACKAGES, PREDICT, echo_server, message, our_server, row, save_mlp

from tfrec.server.servable import Servable

CALLS = 1000
EXAMPLE = "python benchmarks/serve_overhead.py --rounds 5"


def main() -> None:
    options = arguments(str(__doc__), EXAMPLE).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = save_mlp(Path(folder) / "mlp")
        default, own = default_session(path), own_session(path)
        with our_server(path.parent, 2) as server, echo_server(2) as echo:
            calls = [default, own, caller(server.target), caller(echo.target)]
            rounds = [[median_seconds(CALLS, call) for call in calls] for _ in range(options.rounds + 1)][1:]
    session, in_thread, served, echoed = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"Predict {served * 1e6:.0f} µs, echo {echoed * 1e6:.0f} µs, Session run {session * 1e6:.0f} µs, in the "
        f"caller's thread {in_thread * 1e6:.0f} µs ({(served - echoed) / in_thread:.2f} of those)"
    )
    added = served - echoed
    report(options.results, "serve_overhead", added / session, added, session, "seconds", PACKAGES, added / session)


def default_session(path: Path) -> Callable[[], object]:
    """A run by TensorFlow's own session and callable."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loader = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    signature = loader.signature_def["serving_default"]
    run = session.make_callable([signature.outputs["y"].name], [signature.inputs["x"].name])
    x = row()
    return lambda: run(x)


def own_session(path: Path) -> Callable[[], object]:
    """A run by the server's session."""
    servable, x = Servable(path), row()
    signature = servable.signatures["serving_default"]
    feeds, fetches = {signature.inputs["x"].tensor: x}, [signature.outputs["y"].tensor]
    return lambda: servable.session.run(feeds, fetches)


def caller(target: str) -> Callable[[], object]:
    """A call over gRPC, of bytes."""
    call, data = grpc.insecure_channel(target).unary_unary(PREDICT), message()
    return lambda: call(data, timeout=20)


if __name__ == "__main__":
    main()
