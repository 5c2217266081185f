"""The Prometheus page: names, buckets, labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tfrec.server.metrics import Counter, Histogram, Metrics, exponential


def test_counters_by_label():
    counter = Counter("/tensorflow/serving/request_count", ["model_name", "status"])
    counter.add("a", "OK")
    counter.add("a", "OK", by=2)
    counter.add('b"\\', "NOT_FOUND")
    assert counter.lines() == [
        ':tensorflow:serving:request_count{model_name="a",status="OK"} 3',
        ':tensorflow:serving:request_count{model_name="b\\"\\\\",status="NOT_FOUND"} 1',
    ]


def test_buckets_are_cumulative():
    histogram = Histogram("/x", ["m"], exponential(10, 1.8, 3))
    for value in (9, 10, 20, 1000):
        histogram.add(value, "a")
    assert histogram.lines() == [
        ':x_bucket{m="a",le="10"} 1',
        ':x_bucket{m="a",le="18"} 2',
        ':x_bucket{m="a",le="32.4"} 3',
        ':x_bucket{m="a",le="+Inf"} 4',
        ':x_sum{m="a"} 1039',
        ':x_count{m="a"} 4',
    ]


def test_threads_lose_no_count():
    counter = Counter("/x", ["m"])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: counter.add("a"), range(2000)))
    assert counter.lines() == [':x{m="a"} 2000']


def test_a_new_server_has_a_page():
    assert "# TYPE :tensorflow:serving:request_latency histogram\n" in Metrics().page()
