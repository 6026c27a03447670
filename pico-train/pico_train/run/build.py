"""Build a run from its configuration, checked against the data, the device and the method."""

from __future__ import annotations

import dataclasses

from pico_contract.errors import UserError
from pico_contract.kinds import MICROBATCH_GRADIENTS, observation_name
from pico_contract.observer import KindSplit, ObservedRun

from pico_train.checkpoint.save import ModelMetadata
from pico_train.data.loader import BatchLoader
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData, Rows
from pico_train.distributed import Runtime
from pico_train.errors import error_context
from pico_train.evaluate.tasks import check_tasks
from pico_train.log.trackers import check_trackers
from pico_train.method.base import Method
from pico_train.model.cost import on_meta
from pico_train.observe.plugins import open_observers
from pico_train.observe.probe import choose_probe, positions
from pico_train.observe.snapshot import Observer, SnapshotConfig, observed_modules
from pico_train.optim import OptimizerConfig
from pico_train.run.architecture import checked_architecture
from pico_train.run.compile import compiles
from pico_train.run.config import RunConfig
from pico_train.run.inherit import check_source, inherited_token_ids, own_vocabulary
from pico_train.run.job import Job, build_method
from pico_train.sharding import Sharding


def require_shardable(
    sharding: Sharding,
    method: Method,
    method_name: str,
    optimizer: OptimizerConfig,
    micro_batch_size: int | str | None,
) -> None:
    """Check that a run with `sharding` has a method and an optimizer that support it.

    Raises:
        UserError: the method or the optimizer does not, by name; or the micro-batch is to be found
            by trial, in which a process out of memory would leave the others waiting for its shard.
    """
    if sharding == "none":
        return
    if not method.shardable:
        raise UserError(
            f'train.sharding is full, which the method "{method_name}" does not support: set it to none'
        )
    if not optimizer.supports_sharding:
        raise UserError(
            f'train.sharding is full, which optimizer.name "{optimizer.name}" does not support; adamw does'
        )
    if micro_batch_size == "auto":
        raise UserError(
            "train.sharding is full, for which train.micro_batch_size cannot be auto: set it to a number"
        )


def require_processes(sharding: Sharding, processes: int) -> None:
    """Check that a run whose state is sharded has several processes.

    Raises:
        UserError: it has only this one.
    """
    if sharding == "full" and processes == 1:
        raise UserError(
            "train.sharding is full, but this is the only process: start several by torchrun or accelerate launch, or"
            " set it to none"
        )


def _check_processes(snapshot: SnapshotConfig, processes: int) -> None:
    kind = observation_name("train", MICROBATCH_GRADIENTS)
    if kind in snapshot.kinds and processes > 1:
        raise UserError(
            f"snapshot.kinds holds {kind}, which is observed in one process alone, not in {processes}: leave it out"
        )


def build(config: RunConfig, source: str = "the configuration") -> Job:
    """Open the data, check the configuration against it, and build what a session needs.

    Raises:
        UserError: names `source` and the key at fault. The data is missing; the vocabulary is
            smaller than the tokenizer's; the sequence is longer than the rows; the device does not
            exist; an option of the method or of an observer is wrong; the model that a new run
            starts from (`init_from`) is missing or has another geometry.
    """
    train = config.train
    with error_context(source):
        data, rows = _open_data(config)
        seq_len = train.seq_len or rows.seq_len
        _check_against_data(config, data, seq_len)
    # Names `source` itself.
    method = build_method(config.method, source)
    with error_context(source):
        # Before the processes meet, so that a mistake is reported at once.
        _check_choices(config, data, method)
        # From here on the run needs its processes and its device.
        runtime = Runtime(train.device, train.timeout_minutes)
        micro_batch = train.rows_per_pass(runtime.processes)
        _check_processes(config.snapshot, runtime.processes)
        compiled = compiles(train.compile, runtime.device, train.sharding)
        architecture = checked_architecture(config.model, config.hub.repo)
        inherited = inherited_token_ids(config.layout, config.init_from)
        with error_context("snapshot.modules"):
            modules = observed_modules(on_meta(config.model), config.snapshot.modules)
        # Observers check their options against what the run will give them.
        observers = open_observers(
            config.observe, _observed_run(config, modules, method), train.steps
        )
    token_ids = {**data.manifest.special_tokens, **inherited}
    return Job(
        config=config,
        runtime=runtime,
        data=data,
        loader=_batch_loader(config, data, rows, seq_len, runtime),
        seq_len=seq_len,
        micro_batch=micro_batch,
        precision=runtime.precision(train.precision),
        compiled=compiled,
        metadata=ModelMetadata(
            config.name, config.model, data.tokenizer_path, token_ids, architecture
        ),
        vocabulary=own_vocabulary(data.vocabulary, token_ids),
        observer=_snapshot_observer(config, data, modules, seq_len, micro_batch),
        observers=observers,
    )


def _open_data(config: RunConfig) -> tuple[PackedData, Rows]:
    with error_context("data.path"):
        data = PackedData.open(config.data.path, config.data.stream)
        return data, data.split("train")


def _check_choices(config: RunConfig, data: PackedData, method: Method) -> None:
    """Check the choices that depend on the data or the method but not on the device."""
    check_tasks(data, config.evaluate)
    check_trackers(config.log.trackers)
    method.check(config.schedule, config.train.steps)
    require_shardable(
        config.train.sharding,
        method,
        config.method.name,
        config.optimizer,
        config.train.micro_batch_size,
    )
    # Once a run has begun, the model that it started from may be gone.
    if config.init_from is not None and not config.layout.manifest.is_file():
        check_source(config.init_from, config.model)


def _batch_loader(
    config: RunConfig, data: PackedData, rows: Rows, seq_len: int, runtime: Runtime
) -> BatchLoader:
    order = RowOrder(
        n_rows=rows.n_rows,
        batch_size=config.train.batch_size,
        fingerprint=data.manifest.fingerprint,
        seed=config.seed.data,
        shuffle=config.data.order == "shuffled",
        blocks=rows.blocks,
    )
    return BatchLoader(
        rows,
        order,
        seq_len,
        n_batches=config.train.steps,
        share=runtime.share,
        prefetch=runtime.copies_in_background,
    )


def _snapshot_observer(
    config: RunConfig, data: PackedData, modules: list[str], seq_len: int, micro_batch: int
) -> Observer:
    fingerprint = data.manifest.fingerprint
    return Observer(
        config=config.snapshot,
        layout=config.layout,
        run=config.name,
        probe=choose_probe(data, config.snapshot.probe_rows, seq_len),
        modules=modules,
        positions=positions(config.snapshot.positions, seq_len, fingerprint),
        micro_batch=micro_batch,
    )


def _observed_run(config: RunConfig, modules: list[str], method: Method) -> ObservedRun:
    """Describe the run to third-party observers."""
    # Weights belong to no split; every other kind is named `split.kind`.
    tensors: list[KindSplit] = [("weights", None)]
    for kind in config.snapshot.kinds:
        split, name = kind.split(".")
        tensors.append((name, split))
    return ObservedRun(
        layout=config.layout,
        name=config.name,
        model=dataclasses.asdict(config.model),
        modules=tuple(modules),
        available=tuple(tensors),
        low_rank=method.low_rank,
    )


def _check_against_data(config: RunConfig, data: PackedData, seq_len: int) -> None:
    manifest = data.manifest
    if seq_len > manifest.seq_len:
        raise UserError(
            f"train.seq_len is {seq_len}, longer than the rows of {data.path} (seq_len {manifest.seq_len})"
        )
    if seq_len > config.model.max_position_embeddings:
        raise UserError(
            f"the rows of {data.path} have seq_len {seq_len}, more than model.max_position_embeddings"
            f" ({config.model.max_position_embeddings}); set train.seq_len or raise the latter"
        )
    if config.model.vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}, smaller than the {manifest.vocab_size} ids of"
            f" the tokenizer in {data.path}"
        )
    if config.observes and "validation" not in manifest.splits:
        if config.observe:
            reason = "observe is not empty"
        else:
            reason = f"snapshot.every is {config.snapshot.every}"
        raise UserError(
            f"{reason}, but {data.path} has no validation rows for the probe; prepare it with a validation"
            " split or set snapshot.every=0 and observe=[]"
        )
