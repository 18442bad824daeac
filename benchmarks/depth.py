"""What stochastic depth saves: Sun, "ResNet on Tiny ImageNet", table 2, as ratios in one run.

ResNet-34 (7x7/2 stem, 64x64 pixels, batches of 100, as in the report) takes whole training steps with and
without stochastic depth (final survival 0.5), in turn, `--rounds` times `--steps` steps each. The expected
depth follows from p_l = 1 - l/L (1 - p_L); the measured one is counted.

    python benchmarks/depth.py [--steps 20] [--rounds 5] [--model resnet34] [--json]
"""

from __future__ import annotations

import time

import measuring

BATCH = 100
REPORTED = {"blocks": (16, 12.3), "layers": (34, 26.6), "seconds": (2.45, 2.13)}


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--steps", type=measuring.at_least(1), default=20)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--final-survival", type=float, default=0.5)
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

    for name in networks:
        step(name)
    count_blocks(networks["on"][0])

    def seconds(name: str) -> float:
        began = time.perf_counter()
        for _ in range(args.steps):
            step(name)
        return (time.perf_counter() - began) / args.steps

    found = measuring.in_turn(networks, seconds, args.rounds)
    ran, steps = count_blocks(networks["on"][0])
    blocks, expected = residual_blocks(networks["on"][0]), expected_blocks(networks["on"][0])
    layers = [2 + layers_a_block * count for count in (ran / steps, blocks)]

    def row(what: str, on: list[float], off: list[float], unit: str) -> measuring.Row:
        return measuring.compare(f"{args.model}, stochastic depth: {what}", on, off, unit, "without")

    rows = [
        row("a step", found["on"], found["off"], "s"),
        row("blocks, expected", [expected], [blocks], ""),
        row("blocks, counted", [ran / steps], [blocks], ""),
        row("layers, counted", layers[:1], layers[1:], ""),
    ]
    heading = f"batches of {BATCH}, {args.steps} steps a round"
    measuring.report(rows, heading, as_json=args.json)
    if not args.json:
        told = (f"{what} {off} -> {on} ({on / off:.2f})" for what, (off, on) in REPORTED.items())
        print(f"Sun's table 2: {', '.join(told)}")


if __name__ == "__main__":
    measuring.run(main)
