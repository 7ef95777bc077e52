"""A fleet on a real Ray cluster of two nodes, one of which dies half-way."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest
from bag_writing import write_bag
from ray.cluster_utils import Cluster

from mtl_perception.bundle import ModelBundle
from mtl_perception.evaluation.fleet import evaluate_fleet, make_jobs, run_on_ray
from mtl_perception.evaluation.run import Settings, combine
from mtl_perception.evaluation.shards import Shard

NODE = {
    'num_cpus': 1,
    'node_ip_address': '127.0.0.2',
    'include_dashboard': False,
    'object_store_memory': 100_000_000,
}
LONGEST_S = 400


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Start a cluster of one node on this machine alone; nothing that hangs outlives LONGEST_S."""
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.slow
def test_the_bags_of_a_node_that_died_are_done_again_with_the_same_result(
    cluster: Cluster, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    fleet = tmp_path / 'fleet'
    fleet.mkdir()
    paths = [write_bag(fleet / f'bag{index}', frames=3 + index) for index in range(6)]
    settings = Settings(str(tiny_bundle.path), engine='onnxruntime', threads=1)
    jobs = make_jobs(paths, fleet, tmp_path / 'ray')
    doomed = cluster.add_node(**NODE)
    finished = []
    for outcome in run_on_ray(jobs, settings, cluster.address):
        if not finished:
            cluster.remove_node(doomed, allow_graceful=False)
        finished.append(outcome)
    assert sorted(outcome.job.name for outcome in finished) == [f'bag{i}' for i in range(6)]
    assert all(outcome.reason is None for outcome in finished)
    shards, failed = evaluate_fleet(make_jobs(paths, fleet, tmp_path / 'serial'), settings)
    assert not failed
    on_ray = combine([Shard(job.target) for job in jobs], tiny_bundle).results
    alone = combine(shards, tiny_bundle).results
    assert {k: v for k, v in on_ray.items() if k != 'times'} == {
        k: v for k, v in alone.items() if k != 'times'
    }
