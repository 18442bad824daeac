"""What a device can do, and what a training step makes of it: the ceilings first, then the step.

Printed are the rate of a large matrix product of random bf16 numbers, the bandwidth of a large copy, and for
the network of a recipe at each of its sizes of images: milliseconds a step and the share of the matrix rate,
eager, compiled, and compiled with CUDA graphs; and by how many percent augmentation lengthens the step, for
the recipe's own policy and for sun_heavy.

    python benchmarks/device.py [--recipe fast_gpu] [--data DATA] [--device cuda] [--seconds 1] [--json]

A way that fails is named with its reason, and the others go on. `fastest` is the way to train that recipe.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any

from tinlab.tuning import tune_process

WAYS = {
    "eager": {"compile": False, "cuda_graphs": False},
    "compiled": {"compile": True, "cuda_graphs": False},
    "cuda graphs": {"compile": True, "cuda_graphs": True},
}
WARMUP = 4
PAYS = 0.98
"""A way replaces a simpler one where it takes at most this share of its time."""


def fastest(milliseconds: dict[str, float]) -> str:
    """The way to train, of those that worked: the simplest one, unless another takes clearly less time."""
    order = [way for way in WAYS if way in milliseconds]
    best = order[0]
    for way in order[1:]:
        if milliseconds[way] <= PAYS * milliseconds[best]:
            best = way
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="fast_gpu")
    parser.add_argument("--data", help="a pack or a data set")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=1.0, help="of steps for each number")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them, with commas")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tune_process()
    report = measured(args)
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(
        f"{report['device']}: {report['matrix_tflops']:.1f} TFLOP/s, copy {report['copy_gb_per_s']:.0f} GB/s"
    )
    for one in report["steps"]:
        what = f"{one['way']:12} {one['size']} pixels, {report['batch_size']} images"
        said = one.get("failed") or (
            f"{one['milliseconds']:.2f} ms, {one['images_per_second']:,.0f} images/s, "
            f"{100 * one['share_of_matrix_rate']:.1f}% of the matrix rate"
        )
        print(f"{what}: {said}")
    for one in report["augmentation"]:
        print(f"augmentation {one['policy']} at {one['size']} pixels: {one['percent']:.2f}% of a step")
    print(f"fastest: {report['fastest']}")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from tinlab import recipes
    from tinlab.compute import choose_kernels, resolve_device
    from tinlab.data.places import open_data
    from tinlab.training.limit import matrix_rate

    pack, device = open_data(args.data), resolve_device(args.device)
    choose_kernels(device)
    recipe, _ = recipes.with_changes(recipes.find(args.recipe), args.set)
    rate = matrix_rate(device, recipe.compute.precision)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "matrix_tflops": rate / 1e12,
        "copy_gb_per_s": copied(device) / 1e9,
        "recipe": recipe.name,
        "batch_size": recipe.schedule.batch_size,
        "steps": [],
        "augmentation": [],
    }
    sizes, totals = recipe.data.image_sizes, {}
    for way in args.ways.split(","):
        compute = recipe.compute.model_copy(update=WAYS[way])
        try:
            step = Step(recipe.model_copy(update={"compute": compute}), pack, device)
            found = [step.report(size, args.seconds, rate) for size in dict.fromkeys(sizes)]
        except Exception as error:  # whatever a compiler or a driver raises
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            report["steps"].append({"way": way, "size": sizes[-1], "failed": f"failed: {reason}"})
            continue
        report["steps"] += [{"way": way, **one} for one in found]
        by_size = {one["size"]: one["milliseconds"] for one in found}
        totals[way] = sum(by_size[size] for size in sizes) / len(sizes)
        if way == "eager" or len(totals) == 1:
            report["augmentation"] = [
                step.augmentation(policy, size, args.seconds)
                for policy in (recipe.name, "sun_heavy")
                for size in (sizes[0], sizes[-1])
            ]
        del step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report["milliseconds"] = totals
    report["fastest"] = fastest(totals) if totals else None
    return report


def copied(device: Any) -> float:
    """Bytes a second, read and written, of a large copy."""
    import torch

    from tinlab.compute import wait_for

    count = (1 << 30) if device.type == "cuda" else (1 << 25)
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return 2 * count * per_second(lambda: into.copy_(source), lambda: wait_for(device), 0.3)


def per_second(do: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """How often `do` is done in a second, over about `seconds`, after a warm-up."""
    for _ in range(WARMUP):
        do()
    wait()
    began = time.perf_counter()
    do()
    wait()
    times = max(3, round(seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    for _ in range(times):
        do()
    wait()
    return times / (time.perf_counter() - began)


class Step:
    """The training step of a recipe: one fixed batch, or batches that the policy has just augmented."""

    def __init__(self, recipe: Any, pack: Any, device: Any) -> None:
        import torch

        from tinlab import models
        from tinlab.compute import compiled, place
        from tinlab.data.batches import Batches, chosen_rows
        from tinlab.training import optimizer

        self.recipe, self.device, self.pack = recipe, device, pack
        torch.manual_seed(0)
        model = models.build(recipe.model, len(pack.info.classes), image_size=pack.info.image_size)
        self.model = place(model, recipe.compute, device).train()
        self.updater = optimizer.build(
            recipe.optimizer.model_copy(update={"peak_lr": recipe.optimizer.peak_lr / 100}), self.model
        )
        self.network = compiled(self.model, recipe.compute)
        split = pack.split("train+tune")
        self.batches = Batches(split, chosen_rows(split), recipe.schedule.batch_size, 0, device)

    def report(self, size: int, seconds: float, rate: float) -> dict[str, Any]:
        """Speed on one fixed batch of images of `size` pixels a side."""
        from tinlab.models.summary import summarise
        from tinlab.training.limit import PASSES

        images = self.recipe.schedule.batch_size
        x, batch = self.policy(()).inputs(self.batches.at(0), size)
        speed = images * self.steps_per_second(lambda: (x, batch), seconds)
        counted = summarise(self.recipe.model, len(self.pack.info.classes), size).multiply_adds
        return {
            "size": size,
            "milliseconds": 1000 * images / speed,
            "images_per_second": speed,
            "share_of_matrix_rate": 2.0 * PASSES * counted * speed / rate,
        }

    def augmentation(self, name: str, size: int, seconds: float) -> dict[str, Any]:
        """By how many percent batches that are read and augmented lengthen the step."""
        from tinlab.recipe import POLICIES

        policy = self.policy(POLICIES[name]() if name in POLICIES else self.recipe.augment)
        x, batch = policy.inputs(self.batches.at(0), size)
        number = iter(range(10**9))
        bare = self.steps_per_second(lambda: (x, batch), seconds)
        whole = self.steps_per_second(lambda: policy.inputs(self.batches.at(next(number)), size), seconds)
        return {"policy": name, "size": size, "percent": 100 * (bare / whole - 1)}

    def policy(self, operations: Any) -> Any:
        import torch

        from tinlab.augment.policy import Policy

        moments = self.pack.moments("train+tune")
        mean, std = (torch.tensor(v, dtype=torch.float32, device=self.device) for v in moments)
        return Policy(operations, mean, std, 0)

    def steps_per_second(self, inputs: Callable[[], tuple[Any, Any]], seconds: float) -> float:
        from tinlab.compute import wait_for
        from tinlab.training.step import forward_backward

        def step() -> None:
            x, batch = inputs()
            forward_backward(self.network, x, batch, self.recipe)
            self.updater.step()
            self.updater.zero_grad(set_to_none=True)

        return per_second(step, lambda: wait_for(self.device), seconds)


if __name__ == "__main__":
    main()
