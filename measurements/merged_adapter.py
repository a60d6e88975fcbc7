"""What is left of an adapter that is merged into a base held in bf16: why steps never run with it merged.

    python measurements/merged_adapter.py

Weights of the base are bf16 numbers already, so that a change of less than half their spacing vanishes when
W + B A is rounded. After n steps of Adam an entry of B is about n times the learning rate; A is as
`policies.lora` draws it.
"""

from __future__ import annotations

import torch

CASES = {
    "rank 512, learning rate 2e-5 (the paper's), weights of .02": (3072, 0.02, 512, 2e-5),
    "rank 32, learning rate 1e-3 (toybox), weights of .07": (192, 0.07, 32, 1e-3),
}
"""Side of a layer, standard deviation of its weights, rank, and learning rate."""
STEPS = (1, 10, 100)


def loss(side: int, spread: float, rank: int, entry: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the share of weights that merging does not change, and the error of the adapter's output.

    Args:
        side: Inputs and outputs of the layer.
        spread: Standard deviation of its weights.
        rank: Rank of the adapter.
        entry: Magnitude of the entries of B.
        dtype: Type in which the base is held.
    """
    drawn = torch.Generator().manual_seed(0)
    weight = (torch.randn(side, side, generator=drawn) * spread).to(dtype)
    down = torch.randn(rank, side, generator=drawn) / rank
    signs = torch.randint(0, 2, (side, rank), generator=drawn) * 2.0 - 1.0
    change = entry * signs @ down
    merged_change = (weight.float() + change).to(dtype).float() - weight.float()
    inputs = torch.randn(side, 64, generator=drawn)
    error = ((merged_change - change) @ inputs).norm() / (change @ inputs).norm()
    return float((merged_change == 0).float().mean()), float(error)


def main() -> None:
    """Print a Markdown table."""
    print("| adapter | steps of Adam | weights that do not change | error of its output, bf16 | fp32 |")
    print("|---|---|---|---|---|")
    for name, (side, spread, rank, learning_rate) in CASES.items():
        for steps in STEPS:
            entry = steps * learning_rate
            lost, error = loss(side, spread, rank, entry, torch.bfloat16)
            _, error_fp32 = loss(side, spread, rank, entry, torch.float32)
            print(f"| {name} | {steps} | {lost:.0%} | {error:.0%} | {error_fp32:.0e} |")


if __name__ == "__main__":
    main()
