"""Learning dynamics of language models from their checkpoints and snapshots.

Its exports are loaded on first use, so that importing the package (for `--help`) costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pico_analyze.engine.measure import measure
    from pico_analyze.plot.figures import figure
    from pico_analyze.sources.open import open_source
    from pico_analyze.sources.run import open_run

__all__ = ["figure", "measure", "open_run", "open_source"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "figure":
        from pico_analyze.plot.figures import figure

        return figure
    if name == "open_run":
        from pico_analyze.sources.run import open_run

        return open_run
    if name == "open_source":
        from pico_analyze.sources.open import open_source

        return open_source
    if name == "measure":
        from pico_analyze.engine.measure import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
