"""A run as configured: composed, checked, built into a `Job`, and its cost."""

from pico_train.run.build import build as build
from pico_train.run.config import RunConfig as RunConfig
from pico_train.run.job import Job as Job
