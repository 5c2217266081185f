"""The REST API of a server in a second process: forms, numbers, errors, keep-alive."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.half_plus_two import add_version, running, write_text
from tfrec.server.api import Api
from tfrec.server.http_server import HttpServer
from tfrec.server.manager import FixedModel
from tfrec.server.rest import Rest
from tfrec.server.servable import Servable


@pytest.fixture(scope="module")
def server(half, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rest")
    add_version(folder / "half", 1, half)
    monitoring = write_text(folder / "monitoring.txt", 'prometheus_config { enable: true path: "/metrics" }')
    arguments = ["--model_name", "half", "--model_base_path", str(folder / "half")]
    with running(*arguments, "--monitoring_config_file", str(monitoring)) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def connection(server):
    connection = http.client.HTTPConnection(urlsplit(server.rest).netloc, timeout=20)
    yield connection
    connection.close()


def ask(connection, method, path, body=None, **headers):
    text = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, text, headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def refused(connection, path, body, status=400):
    got, text = ask(connection, "POST", path, body)
    assert got == status, text
    return json.loads(text)["error"]


def test_rows_are_laid_out_as_tensorflow_serving_does(connection):
    status, text = ask(connection, "POST", "/v1/models/half:predict", {"instances": [1.0, 2.0, 5.0]})
    assert (status, text) == (200, '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}')


def test_columns_are_laid_out_as_tensorflow_serving_does(connection):
    status, text = ask(connection, "POST", "/v1/models/half/versions/1:predict", {"inputs": {"x": [1.0, 2.0]}})
    assert (status, text) == (200, '{\n    "outputs": [\n        2.5,\n        3.0\n    ]\n}')


def test_several_inputs_and_outputs(connection):
    rows = {"signature_name": "pair", "instances": [{"a": [1, 2], "b": [3, 4]}, {"a": [0, 1], "b": [5, 5.5]}]}
    _, text = ask(connection, "POST", "/v1/models/half:predict", rows)
    assert text == (
        '{\n    "predictions": [\n        {\n            "difference": [-2.0, -2.0],\n            "sum": [4.0, 6.0]\n'
        '        },\n        {\n            "difference": [-5.0, -4.5],\n            "sum": [5.0, 6.5]\n'
        "        }\n    ]\n}"
    )
    columns = {"signature_name": "pair", "inputs": {"a": [[1]], "b": [[2]]}}
    _, text = ask(connection, "POST", "/v1/models/half:predict", columns)
    assert json.loads(text) == {"outputs": {"sum": [[3.0]], "difference": [[-1.0]]}}


def test_bytes_travel_as_base64(connection):
    body = {"signature_name": "texts", "instances": [{"b64": "/w=="}, {"b64": "w6k="}]}
    connection.request("POST", "/v1/models/half:predict", json.dumps(body))
    raw = connection.getresponse().read()
    assert b'"b64": "/w=="' in raw and '"text": "é"'.encode() in raw


def test_numbers_that_json_lacks(connection):
    _, text = ask(connection, "POST", "/v1/models/half:predict", '{"instances": [NaN, Infinity, -Infinity, 0.2]}')
    assert text == '{\n    "predictions": [NaN, Infinity, -Infinity, 2.1\n    ]\n}'


def test_classify_and_regress(connection):
    examples = {"signature_name": "classify", "examples": [{"x": 1.0}, {"x": [4.0]}]}
    assert ask(connection, "POST", "/v1/models/half:classify", examples) == (
        200,
        '{\n    "results": [[["low", -1.0], ["high", 2.5]], [["low", -4.0], ["high", 4.0]]\n    ]\n}',
    )
    shared = {"signature_name": "regress", "context": {"x": 2.0}, "examples": [{}, {"x": 4.0}]}
    assert ask(connection, "POST", "/v1/models/half:regress", shared) == (200, '{\n    "results": [3.0, 4.0]\n}')


def test_status_and_metadata(connection):
    version = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/half", "/v1/models/half/versions/1", "/V1/Models/half"):
        status, text = ask(connection, "GET", path)
        assert (status, json.loads(text)) == (200, {"model_version_status": [version]})
    status, text = ask(connection, "GET", "/v1/models/half/metadata")
    metadata = json.loads(text)
    assert metadata["model_spec"] == {"name": "half", "signature_name": "", "version": "1"}
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert default["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    # What is chosen of a oneof comes last.
    assert list(metadata["model_spec"]) == ["name", "signature_name", "version"]
    assert list(default) == ["inputs", "outputs", "method_name", "defaults"]
    assert list(default["inputs"]["x"]) == ["dtype", "tensor_shape", "name"]
    assert text.startswith(
        '{\n"model_spec":{\n "name": "half",\n "signature_name": "",\n "version": "1"\n}\n,\n"metadata"'
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("x:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(x)"),
        ("half/versions/9:predict", {"instances": [1]}, 404, "Servable not found for request: Specific(half, 9)"),
        ("half/labels/a:predict", {"instances": [1]}, 400, "Unrecognized servable version label: a"),
        ("half:predict", "", 400, "JSON Parse error: The document is empty"),
        ("half:predict", "instances = [1]", 400, "JSON Parse error: Invalid value. at offset: 0"),
        ("half:predict", "[1]", 400, "JSON Value: [\n    1\n] Is not object"),
        ("half:predict", {"a": 1}, 400, "Missing 'inputs' or 'instances' key"),
        ("half:predict", {"instances": []}, 400,
         'JSON Value: {\n    "instances": []\n} No values in \'instances\' array'),
        (
            "half:predict",
            {"signature_name": "x", "instances": [1]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        (
            "half:predict",
            {"instances": ["a"]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\" Type: String "
            "is not of expected type: float",
        ),
        ("half:classify", {"signature_name": "pair", "examples": [{"x": 1.0}]}, 400, "Expected one input Tensor."),
        ("half:predict", {"signature_name": "scalar", "instances": [1.0]}, 400,
         "Tensor name: total has no shape information "),
    ],
)  # fmt: skip
def test_refusals(connection, path, body, status, text):
    assert refused(connection, f"/v1/models/{path}", body, status) == text


def test_paths_and_methods_that_do_not_exist(connection):
    assert ask(connection, "GET", "/nothing")[0] == 404
    status, text = ask(connection, "GET", "/v1/nothing")
    assert (status, json.loads(text)["error"]) == (400, "Malformed request: GET /v1/nothing")
    status, text = ask(connection, "PUT", "/v1/models/half", "x")
    assert (status, json.loads(text)["error"]) == (400, "Malformed request: PUT /v1/models/half")
    assert json.loads(ask(connection, "GET", "/v1/models")[1])["error"] == "Missing model name in request."


def test_paths_may_be_written_in_capitals_but_methods_may_not(connection):
    assert ask(connection, "POST", "/V1/MODELS/half:predict", {"instances": [1.0]})[0] == 200
    for path in ("/v1/models/half:Predict", "/v1/models/half:predict?x=1"):
        assert refused(connection, path, {"instances": [1.0]}) == f"Malformed request: POST {path}"
    status, text = ask(connection, "GET", "/v1/models/half/METADATA")
    assert (status, list(json.loads(text))) == (200, ["model_version_status"])


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000])
def test_a_version_that_is_no_int64(connection, number):
    for method, ending in (("POST", ":predict"), ("GET", ""), ("GET", "/metadata")):
        path = f"/v1/models/half/versions/{number}{ending}"
        assert ask(connection, method, path, '{"instances": [1.0]}') == (400, "")  # TensorFlow Serving says no more


def test_one_connection_serves_many_requests_also_after_refusals(connection):
    for _ in range(3):
        assert ask(connection, "POST", "/v1/models/half:predict", {"instances": [0]})[0] == 200
        assert ask(connection, "POST", "/v1/models/half:predict", "{")[0] == 400
    address = connection.sock.getsockname()
    assert ask(connection, "GET", "/v1/models/half")[0] == 200
    assert connection.sock.getsockname() == address


def test_gzip_and_chunks(connection):
    body = json.dumps({"instances": [2.0]}).encode()
    status, text = ask(
        connection, "POST", "/v1/models/half:predict", gzip.compress(body), **{"Content-Encoding": "gzip"}
    )
    assert (status, json.loads(text)) == (200, {"predictions": [3.0]})
    assert refused_gzip(connection) == "JSON Parse error: The document is empty"
    connection.request("POST", "/v1/models/half:predict", iter([body[:5], body[5:]]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert json.loads(connection.getresponse().read()) == {"predictions": [3.0]}


def refused_gzip(connection):
    status, text = ask(connection, "POST", "/v1/models/half:predict", b"no gzip", **{"Content-Encoding": "gzip"})
    assert status == 400
    connection.close()
    return json.loads(text)["error"]


def test_a_request_that_takes_too_long_is_answered_504(half):
    manager = FixedModel("half", 1, Servable(half))
    server = HttpServer(Rest(Api(manager), timeout_seconds=0.02), "127.0.0.1", 0, 1)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = {"signature_name": "loop", "instances": [50_000]}
    assert refused(connection, "/v1/models/half:predict", body, 504) == "Timed out waiting for notification"
    connection.close()
    server.close(5)
    manager.close()


@pytest.mark.parametrize("cors", [True, False])
def test_pages_of_other_origins_may_ask_where_allowed(half, cors):
    manager = FixedModel("half", 1, Servable(half))
    server = HttpServer(Rest(Api(manager), cors=cors), "127.0.0.1", 0, 1)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        page = {"Origin": "https://shop.example"}
        for method, body, sent, status in (
            ("OPTIONS", None, page, 200 if cors else 400),
            ("OPTIONS", None, {}, 400),  # no browser's question
            ("OPTIONS", None, {"Origin": "null"}, 400),
            ("POST", '{"instances": [1.0]}', page, 200),
            ("POST", "{", page, 400),
        ):
            connection.request(method, "/v1/models/half:predict", body, sent)
            response = connection.getresponse()
            text = response.read()
            given = {name: value for name, value in response.getheaders() if name.startswith("Access-Control")}
            assert (response.status, given) == (status, CORS if cors else {})
            assert text or (method == "OPTIONS" and cors)
    finally:
        connection.close()
        server.close(5)
        manager.close()


CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


def test_stalled_and_hostile_clients_do_not_stop_the_others(server, connection):
    host, port = urlsplit(server.rest).netloc.split(":")
    stalled = [socket.create_connection((host, int(port))) for _ in range(40)]
    for i, client in enumerate(stalled):
        client.sendall([b"POST /v1/models/half:predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"\x00\xff\r\n\r\n",
                        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"GET " + b"a" * 70000][i % 4])  # fmt: skip
    assert ask(connection, "POST", "/v1/models/half:predict", {"instances": [0]})[0] == 200
    for client in stalled:
        client.close()


def test_deeply_nested_json_is_refused(connection):
    for text in ("[" * 100_000, '{"instances": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        assert ask(connection, "POST", "/v1/models/half:predict", text)[0] == 400


def test_prometheus_page(connection):
    ask(connection, "POST", "/v1/models/half:predict", {"instances": [0]})
    status, page = ask(connection, "GET", "/metrics")
    assert status == 200
    assert ask(connection, "GET", "/metrics?x") == (400, "Unexpected path: /metrics?x. Should be /metrics")
    assert "# TYPE :tensorflow:serving:request_count counter" in page
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"}' in page
    assert (
        ':tensorflow:serving:request_latency_bucket{model_name="half",API="predict",entrypoint="REST",le="+Inf"}'
        in page
    )
