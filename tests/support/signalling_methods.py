"""Methods that send this process a signal."""

from __future__ import annotations

import os
import signal

from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain


class Killer(Plain):
    """Sends this process a signal while update 5 is computed."""

    number = signal.SIGTERM

    def begin_step(self, step: int) -> BatchSource:
        if step == 5:
            os.kill(os.getpid(), self.number)
        return "language_model"


class Toleration(Killer):
    """The signal with which a cluster asks a job to end."""

    number = signal.SIGUSR1


class Interrupt(Killer):
    """Ctrl-C."""

    number = signal.SIGINT
