"""A job is a plain value: resolving its micro-batch gives another job and leaves the first alone."""

from __future__ import annotations

from collections.abc import Callable

from pico_train.run import RunConfig, build

Tiny = Callable[..., RunConfig]


def test_a_job_with_another_micro_batch_is_another_job(tiny: Tiny) -> None:
    job = build(tiny(**{"train.micro_batch_size": "auto"}))
    resolved = job.with_micro_batch(2)
    assert (resolved.micro_batch, resolved.observer.micro_batch, resolved.config.train.micro_batch_size) == (2, 2, 2)
    assert (job.micro_batch, job.observer.micro_batch, job.config.train.micro_batch_size) == (8, 8, "auto")
    assert resolved.loader is job.loader
