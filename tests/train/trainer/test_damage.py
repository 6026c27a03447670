"""A run directory of which a file is gone or damaged: what follows from the rest is made again, the rest is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from pico_contract.errors import DamagedError
from pico_train import train
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]


@pytest.fixture
def stopped(tiny: Tiny) -> RunConfig:
    """A finished run whose last checkpoint is gone, so that it would go on."""
    config = tiny()
    train(config, quiet=True)
    shutil.rmtree(config.layout.checkpoint(10))
    return config


def test_checkpoints_without_their_manifest_are_not_continued_as_another_run(stopped: RunConfig, tiny: Tiny) -> None:
    """Nothing else says of which configuration and data they are: training on would pass them off as this one's."""
    stopped.layout.manifest.unlink()
    with pytest.raises(DamagedError, match=r"holds checkpoints but no run\.json"):
        train(tiny(**{"seed.init": 7}), quiet=True)
    assert not stopped.layout.checkpoint(10).exists()


@pytest.mark.parametrize("harm", ["cut", "other"])
def test_a_damaged_probe_is_written_again(stopped: RunConfig, harm: str) -> None:
    probe = stopped.layout.probe
    whole = probe.read_bytes()
    probe.write_bytes(whole[:-8] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    train(stopped, quiet=True)
    assert probe.read_bytes() == whole
