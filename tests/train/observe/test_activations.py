"""Captured activations: their rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pico_contract import codec
from pico_train import train
from pico_train.run import RunConfig, build

from .test_snapshot import LAYER, opened, theta

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("rule", "k", "expected"),
    [
        ("last", 1, [15]),
        ("all", 1, list(range(16))),
        ("every", 5, [0, 5, 10, 15]),
        ("mean", 1, []),
        ("sampled", 3, None),
    ],
)
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_activation_rows_are_in_probe_order(
    tiny: Tiny, rule: str, k: int, expected: list[int] | None, micro_batch: int
) -> None:
    """Row r * P + j is position j of probe row r, whatever the micro-batch."""
    config = tiny(**{"snapshot.positions": {"rule": rule, "k": k}, "train.micro_batch": micro_batch})
    train(config, quiet=True)
    manifest, files = opened(config, 4)
    kept = manifest.row_map.positions
    assert expected is None or kept == expected
    assert manifest.row_map.probe_rows == 6
    probe = codec.read_tensors(config.layout.probe)["tokens"].long()
    model, outputs = theta(build(config), 4).eval(), []
    model.get_submodule(f"{LAYER}.mlp.down_proj").register_forward_hook(lambda m, i, o: outputs.append(o.detach()))
    for row in probe:
        model(row[None, :-1])
    whole = torch.cat(outputs)  # (rows, T, width)
    wanted = whole[:, kept].flatten(0, 1) if kept else whole.mean(dim=1)
    found = files["val.activations"][f"{LAYER}.mlp.down_proj"]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
