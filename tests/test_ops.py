"""The op lint and its data; the slow test runs a text model under older TensorFlow releases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from tests.saved_models import save_packed_segments, save_shop, shop_requests
from tfrec.artifact.golden import write_golden
from tfrec.artifact.ops import missing_ops, serving_ops, used_ops
from tfrec.artifact.session_check import check, read_meta_graph
from tfrec.errors import ArtifactError
from tools.serving_ops import BUILT_FROM, release

TOKENIZER_OPS = {"CaseFoldUTF8", "NormalizeUTF8", "RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets"}


def test_text_ops_are_those_of_the_linked_tf_text():
    for version in ("2.18", "2.19"):
        assert serving_ops(version) >= TOKENIZER_OPS
        assert "TFText>RoundRobinTrim" not in serving_ops(version)


def test_ops_without_a_cpu_kernel_are_out():
    assert {"MatMul", "TopKV2", "StatefulPartitionedCall", "LookupTableFindV2"} <= serving_ops("2.18")
    assert not {"PyFunc", "EagerPyFunc", "TPUExecute"} & serving_ops("2.18")


def test_a_newer_serving_is_held_to_the_newest_list():
    assert serving_ops("2.30") == serving_ops("2.19")


def test_an_older_serving_is_refused():
    with pytest.raises(ArtifactError, match=r"must be at least 2.18; got '2.9'"):
        serving_ops("2.9")


def test_the_data_file_is_sorted_and_says_where_it_comes_from():
    table = json.loads(resources.files("tfrec.artifact").joinpath("serving_ops.json").read_text())
    assert table["common"] == sorted(set(table["common"]))
    sources = {v: (built["tensorflow"], built["tensorflow-text"]) for v, built in table["built_from"].items()}
    assert sources == BUILT_FROM  # else run tools/serving_ops.py again
    assert set(table["added"]) == set(BUILT_FROM)


def test_used_ops_follow_functions_inputs_and_branches():
    graph = MetaGraphDef()
    add = graph.graph_def.node.add
    add(name="x", op="Placeholder")
    branch = add(name="branch", op="If", input=["x", "^lonely"])
    branch.attr["then_branch"].func.name = "yes"
    branch.attr["tags"].list.func.add(name="listed")
    add(name="lonely", op="NoOp")
    add(name="unused", op="Unused")
    for name, op in (("yes", "inner"), ("inner", "Deep"), ("listed", "Listed"), ("dead", "Dead")):
        function = graph.graph_def.library.function.add()
        function.signature.name = name
        function.node_def.add(name="node", op=op)
    graph.signature_def["s"].outputs["y"].name = "branch:0"
    used = used_ops(graph)
    reached = {"Placeholder", "If", "NoOp", "Deep", "Listed"}
    assert used == {**{op: {"s"} for op in reached}, "Unused": set(), "Dead": set()}


def test_missing_ops_name_the_signatures():
    used = {"MatMul": ["a"], "Nowhere": ["b", "a"]}
    assert missing_ops(used, "2.18") == {"Nowhere": ["a", "b"]}


def test_a_real_model_passes_and_segment_packing_fails(tmp_path):
    shop = used_ops(read_meta_graph(save_shop(tmp_path / "shop")))
    assert missing_ops(shop, "2.18") == {}
    assert "search" in shop["FastWordpieceTokenizeWithOffsets"] and "rank" not in shop["CaseFoldUTF8"]
    packed = used_ops(read_meta_graph(save_packed_segments(tmp_path / "packed")))
    assert missing_ops(packed, "2.19") == {"TFText>RoundRobinTrim": ["search"]}


@pytest.mark.slow
@pytest.mark.parametrize(("tensorflow", "text"), [("2.18.1", "2.18.1"), ("2.19.1", "2.19.0")])
def test_older_releases_run_every_signature(tmp_path, tensorflow, text):
    try:
        site = release(tensorflow, text)
    except OSError as error:
        pytest.skip(str(error))
    path = save_shop(tmp_path / "shop")
    write_golden(path, shop_requests())
    calls = check(path)["calls"]
    assert len(calls) == len(shop_requests())
    assert _under(site, path, calls, tmp_path) == []
    scores = calls[0]["outputs"]["scores"]["value"]
    calls[0]["outputs"]["scores"]["value"] = {**scores, "data": "\0" * len(scores["data"])}
    [[where, message]] = _under(site, path, calls, tmp_path)
    assert "output scores" in where and "values differ" in message


def _under(site: Path, path: Path, calls: list, folder: Path) -> list:
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [sys.executable, "-m", "tfrec.artifact.capi", str(path), str(folder / "calls.json"), str(site)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["failures"]
