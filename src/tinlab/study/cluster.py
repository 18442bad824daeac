"""Trials on a Ray cluster. The study's folder and the pack are on a file system that all its machines share.

Ray places each trial where its CPUs and GPUs are free. Where a machine dies, Ray runs its trials elsewhere,
and they go on from their checkpoints.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tinlab.errors import TinlabError
from tinlab.study.attempt import Attempt, Row, Settings, cores, read_row, write_row
from tinlab.study.plan import Trial
from tinlab.training.signals import StopRequest

RETRIES = 5
"""How often a trial is begun anew after its machine or its worker died."""
STORE_BYTES = 80 * 2**20
"""Ray's memory for shared objects, of which there are none: about the least that Ray takes."""
REACH_SECONDS = 20
STOP_FILE = "stop"
"""While the study's folder holds it, trials save and end."""


def run_on_cluster(
    folder: Path,
    trials: Sequence[Trial],
    settings: Settings,
    address: str,
    *,
    stop: StopRequest,
    ended: Callable[[Trial, Row], None],
) -> None:
    """Run `trials` on the Ray cluster at `address` (HOST:PORT, ray://HOST:PORT, auto; `local` starts one on
    this machine), and tell `ended` of each.

    Raises TinlabError where ray is missing, the cluster does not answer, or no machine of it has what a run
    asks for.
    """
    ray = _ray()
    with redirect_stdout(sys.stderr):  # ray tells of dead workers where results are to be
        _run(ray, folder, trials, settings, address, stop, ended)


def _run(
    ray: Any,
    folder: Path,
    trials: Sequence[Trial],
    settings: Settings,
    address: str,
    stop: StopRequest,
    ended: Callable[[Trial, Row], None],
) -> None:
    _connect(ray, address)
    try:
        gpus = settings.gpus or 0
        _check_nodes(ray, settings.cpus, gpus)
        (folder / STOP_FILE).unlink(missing_ok=True)
        task = ray.remote(run_here).options(
            num_cpus=settings.cpus, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        running = {task.remote(str(folder), trial, settings): trial for trial in trials}
        while running:
            if stop.signal_number:
                (folder / STOP_FILE).touch()
            done, _ = ray.wait(list(running), num_returns=1, timeout=0.3)
            for reference in done:
                trial = running.pop(reference)
                try:
                    row = ray.get(reference)
                except ray.exceptions.RayError as error:
                    row = _lost(folder, trial, settings, error)
                if row is not None:
                    ended(trial, row)
    finally:
        if stop.signal_number:
            (folder / STOP_FILE).unlink(missing_ok=True)
        ray.shutdown()


def run_here(folder: str, trial: Trial, settings: Settings) -> Row | None:
    """A task of the cluster: run `trial` in a child process; None where the study is stopping already."""
    place = Path(folder)
    if (place / STOP_FILE).exists():
        return None
    attempt = Attempt(place, trial, settings)
    while (row := attempt.poll()) is None:
        if (place / STOP_FILE).exists():
            attempt.stop()
        time.sleep(0.3)
    return row


def _lost(folder: Path, trial: Trial, settings: Settings, error: Exception) -> Row:
    """The row of a trial whose machines died again and again, or where the task itself went wrong."""
    row = read_row(folder, trial, settings.pack_digest)
    if row.status == "finished":
        return row
    said = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
    return write_row(folder, trial, row.model_copy(update={"status": "failed", "error": said[:400]}))


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported and when it starts
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise TinlabError(f"--cluster needs ray ({error}): pip install 'tinlab[cluster]'") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    if address not in ("local", "auto"):
        # Ray itself asks for minutes before it gives up.
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise TinlabError(f"--cluster {address}: nothing answers there ({error})") from error
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    # ray.init takes the signals for itself; here they are a wish to stop, granted by the loop.
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=cores(),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **options,
            )
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TinlabError(f"--cluster {address}: no Ray cluster answers there ({reason})") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():
                signal.signal(number, handler)


def _check_nodes(ray: Any, cpus: int, gpus: float) -> None:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in alive):
        raise TinlabError(
            f"no machine of the cluster has {cpus} CPUs and {gpus:g} GPUs; ask for fewer with --cpus and "
            "--gpus"
        )
