"""A real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from tinlab import runs
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.study.attempt import Settings
from tinlab.study.cluster import run_on_cluster
from tinlab.study.plan import Study
from tinlab.study.run import StudyStopped, run_study
from tinlab.training.signals import StopRequest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'tinlab[cluster]'")

pytestmark = pytest.mark.timeout(420)
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def settings(shapes_pack) -> Settings:
    return Settings(pack=shapes_pack.path, pack_digest=shapes_pack.digest, device="cpu", checkpoint_seconds=0)


def test_a_dead_node_costs_no_run(cluster, tiny_recipe, settings, tmp_path, capsys):
    """Two trials on two nodes; one node is killed while both train: both finish, the orphan from its
    checkpoint."""
    second = cluster.add_node(**SMALL)
    study = Study(name="x", recipes=(changed(tiny_recipe, ["schedule.steps=250"]),), seeds=(0, 1))
    folder = tmp_path / "x"

    def kill_a_node() -> None:
        end = time.monotonic() + 200
        while time.monotonic() < end:
            begun = runs.list_runs(folder / "runs")
            if len(begun) == 2 and all(run.metrics() for run in begun):
                cluster.remove_node(second, allow_graceful=False)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    done = run_study(study, folder, settings, cluster=cluster.address, say=lambda _: None)
    killer.join()
    assert [row.status for row in done.rows] == ["finished", "finished"]
    assert sorted(row.attempts for row in done.rows) == [1, 2]
    assert len(runs.list_runs(folder / "runs")) == 2
    again = next(row for row in done.rows if row.attempts == 2)
    assert runs.open_run(folder / again.run).environment["resumed"]
    assert capsys.readouterr().out == ""  # ray tells of the dead, and results may be JSON

    many = replace(settings, cpus=64)
    with pytest.raises(TinlabError, match="no machine of the cluster has 64 CPUs"):
        run_on_cluster(folder, [], many, cluster.address, stop=StopRequest(), ended=lambda *_: None)

    # A signal here stops the runs there, and they are saved.
    longer = study.model_copy(
        update={"recipes": (changed(tiny_recipe, ["schedule.steps=20000"]),), "seeds": (0,)}
    )

    def interrupt() -> None:
        end = time.monotonic() + 200
        while time.monotonic() < end:
            begun = runs.list_runs(tmp_path / "y" / "runs")
            if begun and begun[0].metrics():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    threading.Thread(target=interrupt).start()
    with pytest.raises(StudyStopped, match="0 of 1"):
        run_study(longer, tmp_path / "y", settings, cluster=cluster.address, say=lambda _: None)
    (row,) = (tmp_path / "y" / "trials").glob("*.json")
    assert '"stopped"' in row.read_text()
    assert not (tmp_path / "y" / "stop").exists()
