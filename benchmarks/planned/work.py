"""A process that trains what it is given, one recipe after another; and its weights, to take home."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PIECE_BYTES = 16 << 20
"""Of a file with weights."""


def worker() -> int:
    """Train what standard input names, a JSON object a line, and answer each with one."""
    from tinlab.tuning import tune_process

    tune_process()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            given.put(line)
        given.put(None)
        if training.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # nobody is there any more: save and stop

    training = threading.Event()
    threading.Thread(target=listen, daemon=True).start()
    while (line := given.get()) is not None:
        training.set()
        reply = trained(json.loads(line))
        training.clear()
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
    return 0


def trained(work: Mapping[str, Any]) -> dict[str, Any]:
    """Train, or go on with, one recipe, until it is finished or its time is up."""
    import torch

    from tinlab.data.pack import Pack
    from tinlab.errors import TinlabError
    from tinlab.recipe import parse_recipe
    from tinlab.study.trial import find_run
    from tinlab.training import endings, loop

    recipe, folder = parse_recipe(work["recipe"], "work"), Path(work["runs"])
    try:
        pack = Pack.open(work["pack"])
        options: dict[str, Any] = {
            "device": work["device"],
            "stop_after_seconds": work["ends_at"] - time.time(),
            "checkpoint_seconds": 120,
        }
        run = find_run(folder, recipe, work["seed"], pack.digest)
        if run is None:
            run = loop.train(recipe, pack, folder, seed=work["seed"], **options)
        else:
            run = loop.resume(run.path, pack=pack, **options)
    except (endings.TimeIsUp, endings.TrainingStopped) as error:
        return {"status": "paused", "run": str(error.run), "share": error.share, "error": None}
    except (TinlabError, RuntimeError) as error:
        return {"status": "failed", "error": " ".join(str(error).split())[:300]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"status": "finished", "run": str(run.path), "error": None}


def write_halves(run: str | Path, folder: Path) -> list[Path]:
    """The weights of a finished run that were measured, in half precision: a .safetensors file in pieces of
    at most PIECE_BYTES, named NAME.safetensors.00, .01, … Raises TinlabError where there is no checkpoint."""
    import safetensors.torch
    import torch

    from tinlab import models
    from tinlab.errors import TinlabError
    from tinlab.runs import open_run
    from tinlab.training import checkpoint

    opened = open_run(run)
    place = checkpoint.latest(opened.path)
    if place is None:
        raise TinlabError(f"{run} has no checkpoint, so it has no weights")
    size = opened.preprocessing.image_size
    model = models.build(opened.recipe.phases[-1].model, len(opened.classes), image_size=size)
    averaged = (opened.result or {}).get("weights") == checkpoint.EMA
    checkpoint.load_measured(place, model, torch.device("cpu"), averaged)
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    data = safetensors.torch.save(halves)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        pieces.append(folder / f"{opened.recipe.name}-s{opened.seed}.safetensors.{number:02d}")
        pieces[-1].write_bytes(data[start : start + PIECE_BYTES])
    return pieces
