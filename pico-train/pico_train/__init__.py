"""Train small language models and observe them while they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pico_train.trainer.train import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "train"]


def __getattr__(name: str) -> Any:
    # `import pico_train` stays light: torch is imported when `train` is first asked for.
    if name == "train":
        from pico_train.trainer.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
