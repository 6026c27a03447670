"""Options of ReLoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pico_train.config import Section
from pico_train.method.relora.optimizer_reset import Reset


class AdaptiveConfig(Section):
    """At each restart, every low-rank module's next rank from the spectrum of the update that it
    has just merged.

    A module's demand is counted on the singular values of s B A; ranks are in proportion to
    demands, by one common factor that keeps the parameters of all factors within those of the
    uniform rank.
    """

    criterion: Literal["energy", "effective_rank"] = "energy"
    """The demand: the least number of singular values that hold `energy`, or the effective rank
    (Roy & Vetterli)."""
    energy: float = Field(0.9, gt=0, le=1)
    """Share of the sum of squares."""
    min_rank: int = Field(1, ge=1)
    """The least rank."""
    max_rank: int | None = Field(None, ge=1)
    """The largest; null is a module's smaller side."""

    @model_validator(mode="after")
    def _check(self) -> AdaptiveConfig:
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(f"max_rank ({self.max_rank}) is below min_rank ({self.min_rank})")
        return self


class ReLoRAConfig(Section):
    """Options of ReLoRA; defaults are those of the published study where science has no
    objection."""

    modules: tuple[str, ...] = ("self_attn.*_proj", "mlp.*_proj")
    """Glob patterns of linear layers that become low-rank: all seven of every layer."""
    full: tuple[str, ...] = ()
    """Patterns of those among them that stay full-rank (hybrid rank)."""
    frozen: tuple[str, ...] = ()
    """Patterns of modules that do not train at all, low-rank or not."""
    rank: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 16
    """Rank r; a fraction such as 0.25 is one of the model's width, at most the module's smaller
    side."""
    alpha: float = Field(32.0, gt=0)
    """The scale of an update is alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the input of A; 0 is off. Masks are a function of `seed.method`, the update, the process
    and the micro-batch's place in its batch."""
    trainable_scale: bool = False
    """Whether alpha / r is multiplied by a gain that trains, one number a module, 1 at first."""
    restart_every: int = Field(2000, ge=0)
    """Updates between restarts; 0 never restarts, which is LoRA from scratch."""
    warm_start_steps: int = Field(0, ge=0)
    """Updates of ordinary training before anything becomes low-rank; 0 is off."""
    reset: Reset = "all"
    """What the optimizer forgets of A and B at a restart: "all", or a share of the moments' entries
    by one random mask ("shared_pruning") or the smallest ("magnitude_pruning"), the step counter
    with them. "independent_pruning" is a fault of relora-pico's: a mask for each moment, the
    counter kept."""
    pruning_ratio: float = Field(0.999, ge=0, le=1)
    """Share of the moments' entries that pruning forgets."""
    adaptive: AdaptiveConfig | None = None
    """Ranks that follow the spectra of the updates; null keeps `rank`."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the frozen W is held; "bfloat16" halves it, and rounds every merge once."""
    merge_scale: Literal["alpha_over_rank", "none"] = "alpha_over_rank"
    """The scale of a merge. "none" is a fault of relora-pico's: B A is added without it, and the
    loss jumps."""
    init: Literal["kaiming", "zeros"] = "kaiming"
    """A at the beginning. "zeros" is a fault of relora-pico's: with B zero too, nothing trains
    before the first restart."""
