"""What stochastic depth saves: Sun, "ResNet on Tiny ImageNet", table 2, as ratios in one run.

ResNet-34 (7x7/2 stem, 64x64 pixels, batches of 100, as in the report) takes whole training steps with and
without stochastic depth (final survival 0.5), in turn, `--rounds` times `--steps` steps each. The expected
depth follows from p_l = 1 - l/L (1 - p_L); the measured one is counted.

    python benchmarks/depth.py [--steps 20] [--rounds 5] [--model resnet34] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

BATCH = 100
REPORTED = {"blocks": (16, 12.3), "layers": (34, 26.6), "seconds": (2.45, 2.13)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--final-survival", type=float, default=0.5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import torch
    import torch.nn.functional as F

    from tinlab import models, recipe
    from tinlab.compute import autocast, place
    from tinlab.models.depth import count_blocks, expected_blocks, residual_blocks
    from tinlab.training import optimizer
    from tinlab.tuning import tune_process

    tune_process()
    compute, device = recipe.Compute(), torch.device("cpu")
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(200, (BATCH,))
    networks = {}
    for name, survival in (("off", 1.0), ("on", args.final_survival)):
        model = place(
            models.build(recipe.Model(name=args.model, final_survival=survival), 200), compute, device
        )
        networks[name] = (model, optimizer.build(recipe.Optimizer(peak_lr=1e-3), model))
    layers_a_block = 3 if args.model in ("resnet50", "resnet101", "resnet152") else 2

    def step(name: str) -> None:
        model, updater = networks[name]
        with autocast(compute, device):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.fill_missing_gradients(model)
        updater.step()
        updater.zero_grad(set_to_none=True)

    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for name in networks:
        step(name)
    count_blocks(networks["on"][0])
    for _ in range(args.rounds):
        for name, found in seconds.items():
            began = time.perf_counter()
            for _ in range(args.steps):
                step(name)
            found.append((time.perf_counter() - began) / args.steps)
    ran, steps = count_blocks(networks["on"][0])
    blocks = residual_blocks(networks["on"][0])
    expected, measured = expected_blocks(networks["on"][0]), ran / steps
    median = {name: statistics.median(found) for name, found in seconds.items()}
    result = {
        "model": args.model,
        "blocks": blocks,
        "expected_blocks": round(expected, 3),
        "measured_blocks": round(measured, 3),
        "layers": 2 + layers_a_block * blocks,
        "expected_layers": round(2 + layers_a_block * expected, 2),
        "measured_layers": round(2 + layers_a_block * measured, 2),
        "seconds_off": round(median["off"], 4),
        "seconds_on": round(median["on"], 4),
        "ratio": round(median["on"] / median["off"], 3),
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{args.model}, batches of {BATCH}, medians of {args.rounds} rounds of {args.steps} steps, in turn\n"
    )
    print(f"{'':24}{'off':>9}{'on':>9}{'ratio':>8}   Sun's table 2")
    rows = (
        ("blocks, expected", blocks, expected, REPORTED["blocks"]),
        ("blocks, counted", blocks, measured, REPORTED["blocks"]),
        ("layers, counted", result["layers"], result["measured_layers"], REPORTED["layers"]),
        ("seconds an iteration", median["off"], median["on"], REPORTED["seconds"]),
    )
    for name, off, on, (their_off, their_on) in rows:
        print(
            f"{name:24}{off:9.4g}{on:9.4g}{on / off:8.2f}   "
            f"{their_off} -> {their_on} ({their_on / their_off:.2f})"
        )


if __name__ == "__main__":
    main()
