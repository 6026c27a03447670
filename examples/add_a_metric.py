"""A metric of your own, measured beside the built-in ones:  python examples/add_a_metric.py [RUN]"""

import sys

import torch
from pico_analyze import figure, measure, open_run


def outlier_share(x: torch.Tensor) -> float:
    """Share of entries beyond three standard deviations; 0.0027 for a normal distribution."""
    return float(((x - x.mean()).abs() > 3 * x.std()).double().mean())


table = measure(open_run(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"), [outlier_share, "kurtosis"])
print(table.pivot_table(index=["kind", "metric", "layer"], columns="step", values="value").round(4).to_string())
figure(table, "outlier_share", "weights").savefig("outlier_share.png")
print("outlier_share.png")
