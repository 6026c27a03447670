"""Runs that earlier Pico code published: commits of one branch, or folders, are steps, with what was observed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pico_analyze import measure
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.hub import open_hub
from pico_analyze.sources.published import PublishedRun
from pico_contract import codec
from pico_contract.errors import UserError

from ...support.fake_hub import REPO, Replica, serving

STEPS = (0, 1000, 2000)
RUN = "pico-decoder-tiny-1"
V = "model.layers.0.self_attn.v_proj"
CONFIG = b'{"d_model": 8, "attention_n_heads": 2, "attention_n_kv_heads": 1, "n_layers": 1}'
SHAPES = {"attention.v_proj": (4, 8), "attention.o_proj": (8, 8)}
Files = dict[str, bytes]


def tensors(step: int, kind: str) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(step + ["weights", "gradients", "activations"].index(kind))
    shapes = {name: (6, shape[0]) if kind == "activations" else shape for name, shape in SHAPES.items()}
    return {f"layers.0.{name}": torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def pickled(step: int, kind: str) -> bytes:
    file = io.BytesIO()
    torch.save({f"_forward_module.{name}": tensor for name, tensor in tensors(step, kind).items()}, file)
    return file.getvalue()


def model(step: int, folder: Path) -> Files:
    file = folder / "model.safetensors"
    held = {f"pico_decoder.{name}.weight": tensor for name, tensor in tensors(step, "weights").items()}
    codec.save_tensors(file, held | {"pico_decoder.embedding_proj.weight": torch.full((9, 8), float(step))})
    return {"model.safetensors": file.read_bytes(), "config.json": CONFIG}


def dynamics(step: int, split: str, kinds: tuple[str, ...] = ("weights", "gradients", "activations")) -> Files:
    return {f"learning_dynamics/{split}_{kind}.pt": pickled(step, kind) for kind in kinds}


def history(folder: Path) -> list[tuple[str, Files]]:
    """As pico-train 1.x commits, the newest first; each commit holds what those before it wrote as well."""
    files: Files = {"README.md": b"a model"}
    commits = [("initial commit", dict(files))]
    for step in STEPS:
        for title, added in (
            (f"Saving HF Model -- Step {step}", model(step, folder)),
            (f"Saving Learning Dynamics Data (train) -- Step {step}", dynamics(step, "train", ("gradients",))),
            (f"Saving Learning Dynamics Data (val) -- Step {step}", dynamics(step, "val")),
            (f"Saving Evaluation Results -- Step {step}", {f"eval_results/step_{step}.json": b"{}"}),
        ):
            files |= added
            commits.append((title, dict(files)))
    return commits[::-1]


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    with serving({"main": {"README.md": b""}}, {RUN: history(tmp_path)}) as replica:
        yield replica


@pytest.fixture
def opened(replica: Replica, tmp_path: Path) -> Callable[..., PublishedRun]:
    def open_(name: str = f"@{RUN}", kib: float = 1000.0) -> PublishedRun:
        series = open_hub(f"hub:{REPO}{name}", kib / 2**20, tmp_path / "cache", replica.endpoint)
        assert isinstance(series, PublishedRun)
        return series

    return open_


def test_commits_of_a_branch_are_steps_and_its_name_is_not(
    replica: Replica, opened: Callable[..., PublishedRun]
) -> None:
    run = opened()
    assert (run.name, run.steps, run.damaged, run.notes) == (RUN, list(STEPS), {}, [])
    assert run.splits(1000, "weights") == [None]
    assert run.splits(1000, "gradients") == ["train", "val"]
    assert run.splits(1000, "activations") == ["val"]
    assert not any(file.endswith((".pt", ".safetensors")) for _, file in replica.downloads)
    assert run.model["num_attention_heads"] == 2
    assert set(run.modules(1000, "weights")) == {V, V.replace("v_proj", "o_proj"), "model.embed_tokens"}


def test_each_step_has_the_tensors_of_its_own_commit(opened: Callable[..., PublishedRun]) -> None:
    """The commit of a model still holds the gradients of the step before, which are not its own."""
    run = opened()
    for step in STEPS:
        assert torch.equal(run.tensor(step, "weights", V), tensors(step, "weights")["layers.0.attention.v_proj"])
        for kind, split in (("gradients", "train"), ("gradients", "val"), ("activations", "val")):
            assert run.modules(step, kind, split) == [V, V.replace("v_proj", "o_proj")]
            expected = tensors(step, kind)["layers.0.attention.v_proj"]
            assert torch.equal(run.tensor(step, kind, V, split), expected)
            assert torch.equal(run.tensor(step, kind, "layers.0.attention.v_proj", split), expected)


def test_weights_gradients_and_activations_are_measured_within_a_budget(
    opened: Callable[..., PublishedRun], tmp_path: Path
) -> None:
    sizes = [opened().size(step) for step in STEPS]
    run = opened(kib=1.5 * max(sizes) / 2**10)
    table = measure(run, ["frobenius_norm"], ["v_proj", "ov_circuit"])
    assert set(table["status"]) == {"ok"}
    assert set(zip(table["kind"], table["split"].fillna("-"), strict=True)) == {
        ("weights", "-"),
        ("gradients", "train"),
        ("gradients", "val"),
        ("activations", "val"),
    }
    for row in table[table["component"] == "self_attn.v_proj"].to_dict("records"):
        expected = tensors(row["step"], row["kind"])["layers.0.attention.v_proj"].double().norm()
        assert row["value"] == pytest.approx(float(expected), rel=1e-12)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".pt", ".safetensors")]
    assert sum(path.stat().st_size for path in kept) <= 1.5 * max(sizes)


def test_a_step_without_a_model_has_the_weights_that_were_observed(
    replica: Replica, opened: Callable[..., PublishedRun]
) -> None:
    commits = replica.history[RUN]
    replica.history[RUN] = [one for one in commits if one[0] != "Saving HF Model -- Step 1000"]
    run = opened()
    assert run.steps == list(STEPS)
    assert run.modules(1000, "weights") == [V, V.replace("v_proj", "o_proj")]
    assert torch.equal(run.tensor(1000, "weights", V), tensors(1000, "weights")["layers.0.attention.v_proj"])


def test_of_a_step_that_was_saved_twice_the_last_counts_and_it_is_said(
    replica: Replica, opened: Callable[..., PublishedRun], tmp_path: Path
) -> None:
    again = model(7, tmp_path)
    replica.history[RUN] = [("Saving HF Model -- Step 1000", again), *replica.history[RUN]]
    run = opened()
    assert torch.equal(run.tensor(1000, "weights", V), tensors(7, "weights")["layers.0.attention.v_proj"])
    assert run.notes == ["saved more than once, of which the last counts: step 1000"]


def test_a_pickle_that_runs_code_is_refused_and_the_rest_measured(
    replica: Replica, opened: Callable[..., PublishedRun]
) -> None:
    file = io.BytesIO()
    torch.save({"layers.0.attention.v_proj": print}, file)
    for title, files in replica.history[RUN]:
        if title == "Saving Learning Dynamics Data (val) -- Step 2000":
            files["learning_dynamics/val_activations.pt"] = file.getvalue()
    with pytest.warns(DamagedWarning, match="step 2000 .*is refused: it holds print,"):
        table = measure(opened(), ["frobenius_norm"], ["v_proj"])
    status = table.set_index(["kind", "split", "step"])["status"]
    assert status["activations", "val", 2000] == "damaged"
    assert set(status[status.index.get_level_values("step") != 2000]) == {"ok"}


def test_a_downloaded_file_that_was_altered_is_fetched_again(
    opened: Callable[..., PublishedRun], tmp_path: Path
) -> None:
    expected = opened().tensor(0, "weights", V)
    (path,) = (tmp_path / "cache").rglob("model.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    assert torch.equal(opened().tensor(0, "weights", V), expected)


def test_steps_of_equal_files_are_known_without_a_download(replica: Replica, tmp_path: Path) -> None:
    same = model(1, tmp_path)
    replica.revisions |= {"step1": same, "step2": model(2, tmp_path), "step143000": same}
    series = open_hub(f"hub:{REPO}@step*", cache=tmp_path / "cache", endpoint=replica.endpoint)
    assert series.notes == ["steps 1, 143000 hold the same files"]
    assert series.content_id(1) == series.content_id(143_000) != series.content_id(2)
    assert replica.downloads == []


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Replica]:
    """Two runs in folders of one branch."""
    files: Files = {}
    for run in ("tiny-a", "tiny-b"):
        for step in STEPS:
            place = f"{run}/checkpoints/step_{step}"
            held = model(step, tmp_path) | dynamics(step, "val")
            files |= {f"{place}/{name}": content for name, content in held.items()}
    with serving({"main": files}) as replica:
        yield replica


def test_folders_of_steps_are_a_run_that_is_named(folders: Replica, tmp_path: Path) -> None:
    run = open_hub(f"hub:{REPO}/tiny-b", cache=tmp_path / "cache", endpoint=folders.endpoint)
    assert (run.name, run.steps) == ("tiny-b", list(STEPS))
    expected = tensors(2000, "activations")["layers.0.attention.v_proj"]
    assert torch.equal(run.tensor(2000, "activations", V, "val"), expected)
    with pytest.raises(UserError, match=f"several runs in folders; name one of them: hub:{REPO}/tiny-a@main, hub:"):
        open_hub(f"hub:{REPO}@main", endpoint=folders.endpoint)
    with pytest.raises(UserError, match='has no folder "tiny-c" with checkpoints/step_N in it'):
        open_hub(f"hub:{REPO}/tiny-c", endpoint=folders.endpoint)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "has no revision whose name says a step; choose from: main, pico-decoder-tiny-1; if the commits"),
        ("@pico-decoder-*-2", 'has no revision "pico-decoder-*-2"; did you mean "pico-decoder-tiny-1"'),
        ("@*", '"main" says no step'),
    ],
)
def test_what_has_no_steps_is_refused_with_what_there_is(replica: Replica, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        open_hub(f"hub:{REPO}{name}", endpoint=replica.endpoint)
    assert sentence in str(error.value)


def test_one_revision_without_a_step_is_step_0(replica: Replica, tmp_path: Path) -> None:
    replica.revisions["main"] = model(3, tmp_path)
    series = open_hub(f"hub:{REPO}@main", cache=tmp_path / "cache", endpoint=replica.endpoint)
    assert (series.steps, len(series.notes)) == ([0], 1)
