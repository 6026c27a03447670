"""`pico-train check`: what it counts is what a run takes, and it refuses what a run would refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pico_contract.errors import UserError
from pico_train import train
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate

from ...support.sizes import bytes_of, in_bytes

Tiny = Callable[..., RunConfig]


def estimated(config: RunConfig) -> dict[str, str]:
    return {line.split()[0]: line.partition(" ")[2].strip() for line in estimate(config, "test.yaml")}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.tie_word_embeddings": True, "snapshot.every": 3},
        {"snapshot.modules": ["embed_tokens", "lm_head", "norm", "v_proj"], "snapshot.dtype": "bfloat16"},
        {"snapshot.positions": {"rule": "every", "k": 2}, "snapshot.probe_rows": 64, "snapshot.early": False},
        {"snapshot.kinds": ["val.activations"], "snapshot.positions": {"rule": "mean"}},
    ],
)
def test_the_estimate_of_the_disk_is_what_a_run_needs(tiny: Tiny, changes: dict[str, object]) -> None:
    """Tensor files only, less their headers: names and shapes, which weigh nothing in a model of real size."""
    config = tiny(**changes, **{"model.hidden_size": 128, "model.vocab_size": 512, "train.steps": 8})
    said = estimated(config)
    train(config, quiet=True)
    layout = config.layout
    for kind, directory in (("checkpoints", layout.checkpoints), ("snapshots", layout.snapshots)):
        count, _, disk = said[kind].partition(" of ")
        assert int(count) == len(list(directory.iterdir()))
        assert in_bytes(disk.rpartition(" = ")[2]) == pytest.approx(bytes_of(directory, "*.safetensors"), rel=0.04)


def test_the_estimate_counts_parameters_tokens_and_epochs(tiny: Tiny) -> None:
    config = tiny(**{"train.seq_len": 12})
    said = estimated(config)
    parameters = sum(p.numel() for p in Decoder(config.model).parameters())
    assert said["parameters"].startswith(f"total {parameters:,}, ")
    assert said["tokens"].startswith("960 in 10 steps of 8 rows of 12 (0.")
    assert said["arithmetic"].endswith("floating-point operations")
    assert in_bytes(said["memory"].split(" for ")[0]) == pytest.approx(16 * parameters, rel=1e-3)
    sizes = [
        in_bytes(said[kind].split(" of ")[1].removeprefix("up to ").split(" = ")[0])
        for kind in ("checkpoints", "snapshots")
    ]
    copies = said["memory"].split(" up to ")[1].split(" of ")[0]
    assert in_bytes(copies) == pytest.approx(sum(sizes), rel=2e-3)


def test_the_estimate_refuses_what_a_run_would_refuse_and_writes_nothing(tiny: Tiny) -> None:
    for changes in ({"init_from": "nowhere"}, {"init_from": None, "method.options": {"x": 1}}):
        config = tiny(**changes)
        with pytest.raises(UserError, match=r"^test.yaml: "):
            list(estimate(config, "test.yaml"))
    assert list(estimate(tiny(**{"method.options": {}}), "test.yaml"))
    assert not config.layout.root.exists()


def test_a_pattern_of_no_decay_that_fits_nothing_is_refused_before_the_first_step(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r'"norms" matches no module'):
        estimated(tiny(**{"optimizer.no_decay": ["norms"]}))
