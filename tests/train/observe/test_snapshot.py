"""Snapshots: what they hold equals autograd, and taking them changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.schema import SnapshotManifest
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.observe.snapshot import SnapshotConfig
from pico_train.run import Job, RunConfig, build
from torch import nn

Tiny = Callable[..., RunConfig]
LAYER = "model.layers.1"


def opened(config: RunConfig, step: int) -> tuple[SnapshotManifest, dict[str, dict[str, torch.Tensor]]]:
    directory = config.layout.snapshot(step)
    assert codec.verify_directory(directory, SnapshotManifest, hashes=True) is None
    manifest = codec.read_manifest(directory / "manifest.json", SnapshotManifest)
    return manifest, {path.stem: codec.read_tensors(path) for path in directory.glob("*.safetensors")}


def theta(job: Job, step: int) -> nn.Module:
    """The model of a checkpoint, in training mode with its own parameters."""
    from pico_train.checkpoint.load import load_checkpoint

    return job.build_state(load_checkpoint(job.layout, step)).model


def mean_loss_gradients(model: nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """By autograd alone, through all logits at once."""
    logits = model(tokens[:, :-1].long())
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].long().flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """2e-6 of a tensor's largest entry: float32 sums in another order."""
    assert found
    for name, tensor in found.items():
        assert (tensor - expected[name]).abs().max() <= 2e-6 * expected[name].abs().max(), name


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_gradients_equal_autograd_at_theta_t(tiny: Tiny, micro_batch: int) -> None:
    config = tiny(**{"train.micro_batch_size": micro_batch})
    train(config, quiet=True)
    job = build(config)
    for step in (0, 4, 8):
        manifest, files = opened(config, step)
        row_ids = job.loader.order.rows(step + 1)
        batch = files["train.batch"]
        assert batch["rows"].tolist() == row_ids.tolist()
        assert torch.equal(batch["tokens"].long(), job.loader.tokens(row_ids))
        assert len(files["train.gradients"]) == len(manifest.modules) == 14
        assert_close(files["train.gradients"], mean_loss_gradients(theta(job, step), batch["tokens"]))
        probe = codec.read_tensors(config.layout.probe)["tokens"]
        assert_close(files["val.gradients"], mean_loss_gradients(theta(job, step), probe))


def test_train_gradients_are_those_before_clipping(tiny: Tiny) -> None:
    """With a bound that always clips, the stored norm is the logged one, not the bound."""
    config = tiny(**{"optimizer.grad_clip": 1e-3, "snapshot.modules": ["*"]})
    train(config, quiet=True)
    _, files = opened(config, 4)
    norm = torch.stack([g.norm() for g in files["train.gradients"].values()]).norm().item()
    assert norm == pytest.approx(read_metrics(config.layout.metrics)[4]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("rule", ["mean", "last"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_module_can_be_observed_the_head_too(tiny: Tiny, rule: str, tied: bool) -> None:
    """The fused loss never calls the head as a module; its activations are the logits nevertheless."""
    changes = {"snapshot.modules": ["*"], "snapshot.positions": {"rule": rule}, "model.tie_word_embeddings": tied}
    config = tiny(**changes)
    train(config, quiet=True)
    manifest, files = opened(config, 4)
    assert set(files["val.activations"]) == set(manifest.modules)
    probe = codec.read_tensors(config.layout.probe)["tokens"].long()
    logits = theta(build(config), 4).eval()(probe[:, :-1]).detach()
    wanted = logits.mean(dim=1) if rule == "mean" else logits[:, -1]
    torch.testing.assert_close(files["val.activations"]["lm_head"], wanted, rtol=1e-4, atol=1e-5)


def test_the_weight_of_a_tied_head_is_observed_as_the_embedding(tiny: Tiny) -> None:
    """Once, and by the name under which it trains (CONTRACT.md: `lm_head.weight` is absent)."""
    changes = {"snapshot.modules": ["lm_head"], "model.tie_word_embeddings": True, "checkpoint.every": 0}
    config = tiny(**changes)
    train(config, quiet=True)
    _, files = opened(config, 2)
    for kind in ("weights", "train.gradients", "val.gradients"):
        assert set(files[kind]) == {"model.embed_tokens.weight"}, kind
    job, probe = build(config), codec.read_tensors(config.layout.probe)["tokens"]
    assert_close(opened(config, 0)[1]["val.gradients"], mean_loss_gradients(theta(job, 0), probe))


def test_observing_changes_nothing(tiny: Tiny) -> None:
    """Bit-identical losses, norms and weights with snapshots at every step and with none."""
    runs = [tiny(name="off", **{"snapshot.every": 0}), tiny(name="on", **{"snapshot.every": 1})]
    for config in runs:
        train(config, quiet=True)
    off, on = ([{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(c.layout.metrics)] for c in runs)
    assert off == on
    before, after = (codec.read_tensors(c.layout.checkpoint(10) / "model.safetensors") for c in runs)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert codec.listed_steps(runs[0].layout.snapshots) == []
    assert codec.listed_steps(runs[1].layout.snapshots) == list(range(11))


def test_where_the_weights_lie_and_what_is_absent(tiny: Tiny) -> None:
    config = tiny(**{"checkpoint.every": 0, "train.steps": 8})
    train(config, quiet=True)
    first, middle, last = (opened(config, step) for step in (0, 2, 8))
    assert [m.weights for m, _ in (first, middle, last)] == ["checkpoint", "snapshot", "checkpoint"]
    assert "weights" in middle[1]
    assert "weights" not in first[1]
    assert last[0].absent == {"train.gradients": "final_step"}
    assert "train.gradients" not in last[1]
    assert not first[0].absent


def test_snapshot_weights_are_those_of_the_step(tiny: Tiny) -> None:
    config = tiny(**{"checkpoint.every": 2})
    train(config, quiet=True)
    other = tiny(name="other", **{"checkpoint.every": 0})
    train(other, quiet=True)
    at_two = codec.read_tensors(config.layout.checkpoint(2) / "model.safetensors")
    _, files = opened(other, 2)
    assert all(torch.equal(at_two[name], tensor) for name, tensor in files["weights"].items())


def test_chosen_modules_kinds_and_dtype(tiny: Tiny) -> None:
    config = tiny(
        **{
            "snapshot.modules": ["model.layers.*.self_attn.v_proj", "layers.0.attention.o_proj"],
            "snapshot.kinds": ["val.activations"],
            "snapshot.dtype": "bfloat16",
            "checkpoint.every": 0,
        }
    )
    train(config, quiet=True)
    manifest, files = opened(config, 2)
    names = {"model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj", f"{LAYER}.self_attn.v_proj"}
    assert set(manifest.modules) == names
    assert set(files) == {"weights", "val.activations"}
    assert {t.dtype for file in files.values() for t in file.values()} == {torch.bfloat16}
    assert [s.dtype for s in manifest.observed] == ["bfloat16"]


def test_a_pattern_that_matches_nothing_is_an_error(tiny: Tiny) -> None:
    config = tiny(**{"snapshot.modules": ["*.q_porj"]})
    with pytest.raises(UserError, match="q_proj"):
        train(config, quiet=True)


def test_when_snapshots_are_due() -> None:
    config = SnapshotConfig(every=10)
    assert [step for step in range(36) if config.due(step, 35)] == [0, 1, 2, 4, 8, 10, 20, 30, 35]
    assert [step for step in range(36) if SnapshotConfig(every=10, early=False).due(step, 35)] == [0, 10, 20, 30, 35]
    assert not [step for step in range(36) if SnapshotConfig(every=0).due(step, 35)]
