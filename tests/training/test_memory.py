"""Peaks, running out, and what is said then. What can be run out of here really is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tinlab.recipe import changed
from tinlab.training.memory import (
    OutOfMemory,
    Peak,
    explain_out_of_memory,
    free_bytes,
    gigabytes,
    is_out_of_memory,
    says_out_of_memory,
    total_bytes,
)

CPU = torch.device("cpu")
ENDLESS = 1 << 50


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_the_peak_counts_what_was_held_and_freed_again():
    code = (
        "import torch\nfrom tinlab.training.memory import Peak\n"
        "peak = Peak(torch.device('cpu')); peak.start(); before = peak.read()\n"
        "held = torch.ones(200 << 18); del held\n"
        "print(peak.read() - before)"
    )
    # A child, which must not take its parent's peak for its own.
    parents = torch.ones(300 << 18)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(200 << 20, rel=0.1)
    assert Peak(CPU).read() >= parents.nbytes
    assert Peak(CPU).read() >= psutil.Process().memory_info().rss // 2


def test_a_gpus_peak_is_what_was_reserved_since_the_start(monkeypatch):
    """Against torch's interface alone: there is no such device here."""
    told = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: told.append(device))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 << 30)
    peak = Peak(torch.device("cuda:1"))
    peak.start()
    assert peak.read() == 3 << 30
    assert told == [torch.device("cuda:1")]


def test_free_memory_is_the_systems():
    assert free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert total_bytes(CPU) == psutil.virtual_memory().total
    assert free_bytes(CPU) <= total_bytes(CPU)


@pytest.mark.parametrize(
    ("limit", "used", "free"), [("3000", "1000", 2000), ("900", "1000", 0), ("max", "1", None)]
)
def test_a_containers_limit_counts(monkeypatch, limit, used, free):
    read = Path.read_text
    answers = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, *rest: answers.get(path.name) or read(path, *rest))
    expected = psutil.virtual_memory().available if free is None else free
    assert free_bytes(CPU) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("out", "call"),
    [
        (True, lambda: torch.empty(ENDLESS)),
        (True, lambda: np.empty(ENDLESS)),
        (True, lambda: bytearray(ENDLESS)),
        (False, lambda: torch.empty(2) @ torch.empty(3)),
        (False, lambda: Path("/nonexistent").read_text()),
        (False, lambda: [][0]),
    ],
)
def test_what_really_ran_out_is_known(out, call):
    assert is_out_of_memory(raised(call)) is out


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[Errno 12] Cannot allocate memory",
        "std::bad_alloc",
    ],
)
def test_the_words_are_known(words):
    assert says_out_of_memory(words)
    assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(torch.OutOfMemoryError(words))
    assert not is_out_of_memory(ValueError(words))


def test_a_training_that_runs_out_of_address_space_is_known():
    """A child that may have 300 MB more than it has."""
    code = (
        "import resource, torch, psutil\nfrom tinlab.training.memory import is_out_of_memory\n"
        "had = psutil.Process().memory_info().vms + (300 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (had, had))\n"
        "layer = torch.nn.Conv2d(3, 64, 3)\n"
        "try:\n    layer(torch.zeros(512, 3, 64, 64))\n"
        "except RuntimeError as error:\n    print(is_out_of_memory(error), str(error)[:80])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("True"), done.stdout + done.stderr


def test_what_is_said_has_the_figures_and_mends_in_order(tiny_recipe, tmp_path):
    recipe = changed(tiny_recipe, ["schedule.batch_size=64", "compute.precision=fp32"])
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has")
    said = explain_out_of_memory(error, recipe, 5_000_000_000, CPU, run=tmp_path, saved=True)
    assert isinstance(said, OutOfMemory)
    assert said.exit_code == 2
    words = str(said)
    assert "batch of 64, 32x32 images" in words
    assert f"5.00 GB had been held at most, of {gigabytes(total_bytes(CPU))}" in words
    assert "2.50 GiB more" in words
    mends = re.findall(r"--set '?([\w.]+)=(\[[^]]*\]|[\w.]*\w)", words)
    assert mends == [
        ("schedule.batch_size", "32"),
        ("optimizer.peak_lr", f"{recipe.optimizer.peak_lr / 2:g}"),
        ("schedule.accumulate", "2"),
        ("compute.precision", "bf16"),
        ("data.image_sizes", "[16,24]"),
    ]
    assert "--set 'data.image_sizes=[16,24]'" in words
    # What is advised is accepted.
    new = changed(recipe, [f"{path}={value}" for path, value in mends])
    assert json.loads(new.model_dump_json())["data"]["image_sizes"] == [16, 24]
    assert f"tinlab train --resume {tmp_path}" in words
    assert "last checkpoint" in words
    assert says_out_of_memory(words)  # a study's row knows it by these
    assert "\n" not in words


def test_nothing_is_advised_that_cannot_be_done(tiny_recipe):
    recipe = changed(tiny_recipe, ["schedule.batch_size=3", "schedule.accumulate=3", "data.image_sizes=[16]"])
    words = str(explain_out_of_memory(MemoryError(), recipe, None, CPU))
    assert "--set" not in words
    assert "model.width" in words
    assert "in 3 parts" in words
    assert "--resume" not in words


def test_memory_that_was_asked_for_on_a_cpu_is_said(tiny_recipe):
    error = raised(lambda: torch.empty(ENDLESS))
    assert f"{gigabytes(4 * ENDLESS)} more were asked for" in str(
        explain_out_of_memory(error, tiny_recipe, 10**9, CPU)
    )
