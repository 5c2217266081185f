"""Configuration files: text protos, policies, flags, TLS."""

from __future__ import annotations

import grpc
import pytest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.half_plus_two import add_version, predict_request, write_text
from tfrec.errors import ServerError
from tfrec.server.config import read_config, single_model
from tfrec.server.flags import parser
from tfrec.server.grpc_server import Model, channel_arguments, main, start
from tfrec.server.protos import MonitoringConfig, SSLConfig, read_text
from tfrec.server.servable import Servable
from tfrec.server.status import RequestError
from tfrec.server.tls import read_credentials
from tfrec.server.versions import version_folders


def test_a_model_config_file(tmp_path):
    text = """
    # a comment
    model_config_list {
      config { name: "a" base_path: "/models/a" model_platform: "tensorflow"
               model_version_policy { specific { versions: 1 versions: 3 } }
               version_labels { key: "stable" value: 1 } }
    }"""
    (model,) = read_config(write_text(tmp_path / "models.txt", text)).model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1, 3] and model.version_labels["stable"] == 1


def test_monitoring_and_ssl_files(tmp_path):
    text = 'prometheus_config: { enable: true, path: "/metrics" }'
    monitoring = read_text(write_text(tmp_path / "m", text), MonitoringConfig())
    assert monitoring.prometheus_config.enable and monitoring.prometheus_config.path == "/metrics"
    ssl = read_text(write_text(tmp_path / "s", 'server_key: "a\\nb"\nclient_verify: true'), SSLConfig())
    assert ssl.server_key == "a\nb" and ssl.client_verify and not ssl.custom_ca


@pytest.mark.parametrize("text", ["nonsense", "prometheus_config { port: 1 }", "\xff"])
def test_files_of_another_kind_are_refused(tmp_path, text):
    file = tmp_path / "m"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(RequestError, match="Invalid protobuf file: '"):
        read_text(file, MonitoringConfig())


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"gone; No such file"):
        read_text(tmp_path / "gone", MonitoringConfig())


def test_one_model_by_flags_has_an_absolute_path():
    assert single_model("a", "exports/a").model_config_list.config[0].base_path.startswith("/")


def test_versions_are_numbers(tmp_path):
    for name in ("1", "007", "+2", "1.5", "x", "99999999999999999999", " 3"):
        (tmp_path / name).mkdir()
    assert sorted(version_folders(tmp_path)) == [1, 2, 7]


def test_switches_as_tensorflow_writes_them():
    read = parser("").parse_args
    assert read(["--enable_batching"]).enable_batching is True
    assert read(["--enable_batching=false"]).enable_batching is False
    assert read(["--enable_model_warmup=0"]).enable_model_warmup is False
    with pytest.raises(SystemExit):
        read(["--enable_batching=maybe"])


def test_a_command_line_of_tensorflow_model_server_is_understood():
    words = ["--flush_filesystem_caches=false", "--per_process_gpu_memory_fraction=0.5", "--enable_profiler"]
    found = parser("").parse_args([*words, "--saved_model_tags=serve,gpu", "--enable_signature_method_name_check"])
    assert found.saved_model_tags == "serve,gpu" and found.enable_signature_method_name_check


def test_channel_arguments():
    text = "grpc.max_concurrent_streams=7,grpc.primary_user_agent=x"
    assert channel_arguments(text) == [("grpc.max_concurrent_streams", 7), ("grpc.primary_user_agent", "x")]
    with pytest.raises(ServerError, match="key=value"):
        channel_arguments("grpc.x")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tfrec-model-server ")


def test_batching_parameters_need_batching(tmp_path, capsys, half):
    add_version(tmp_path / "half", 1, half)
    assert main(["--model_base_path", str(tmp_path / "half"), "--batching_parameters_file", "x"]) == 1
    assert "without setting server_options.enable_batching to true" in capsys.readouterr().err


def test_threads_are_set_once(tmp_path, capsys, half):
    add_version(tmp_path / "half", 1, half)
    words = [f"--tensorflow_{which}_parallelism=2" for which in ("intra_op", "inter_op", "session")]
    assert main(["--model_base_path", str(tmp_path / "half"), *words]) == 1
    assert "You cannot configure all." in capsys.readouterr().err


def test_a_model_that_cannot_load_at_the_start_ends_the_server(tmp_path, capsys):
    (tmp_path / "half" / "1").mkdir(parents=True)
    assert main(["--model_base_path", str(tmp_path / "half"), "--max_num_load_retries=0"]) == 1
    text = (
        "Failed to start server. Error: UNKNOWN: 1 model(s) did not become available: {{{name: default version: 1} due"
    )
    assert text in capsys.readouterr().err


def test_unknown_flags_are_refused():
    with pytest.raises(SystemExit):
        main(["--model_base", "x"])


def test_nothing_to_serve(capsys):
    assert main([]) == 1
    assert "Both server_options.model_base_path and server_options.model_config_file are empty!" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(half, certificates, tmp_path, mutual):
    read = lambda name: (certificates / name).read_bytes()  # noqa: E731
    config = SSLConfig(server_key=read("server.key").decode(), server_cert=read("server.pem").decode())
    config.client_verify, config.custom_ca = mutual, read("ca.pem").decode() if mutual else ""
    credentials = read_credentials(write_text(tmp_path / "ssl.txt", config))
    manager = Model("half", 1, Servable(half))
    server, port = start(manager, "127.0.0.1", 0, 1, credentials=credentials)
    plain = grpc.ssl_channel_credentials(read("ca.pem"))
    known = grpc.ssl_channel_credentials(read("ca.pem"), read("client.key"), read("client.pem"))

    def ask(client):
        with grpc.secure_channel(f"localhost:{port}", client) as channel:
            answer = PredictionServiceStub(channel).Predict(predict_request("half", x=[2]), timeout=10)
        return answer.outputs["y"].float_val[0]

    assert ask(known) == 3.0
    if mutual:
        with pytest.raises(grpc.RpcError):
            ask(plain)
    else:
        assert ask(plain) == 3.0
    server.stop(None).wait()
    manager.close()
