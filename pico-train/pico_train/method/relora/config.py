"""Options of ReLoRA and their defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pico_train.config import Section
from pico_train.method.relora.optimizer_reset import Reset


class AdaptiveConfig(Section):
    """Ranks that each restart chooses anew from the spectra of the merged updates.

    A module's demand is counted on the singular values of its s B A. Ranks are proportional to
    demands, by one common factor that keeps the parameters of all factors within those of the
    uniform rank.
    """

    criterion: Literal["energy", "effective_rank"] = "energy"
    """The demand of a module: its effective rank (Roy & Vetterli), or the rank to reach `energy`.
    The latter is the least number of singular values whose squares reach that share of all
    squares."""
    energy: float = Field(0.9, gt=0, le=1)
    """Share of the sum of squared singular values that criterion "energy" must reach."""
    min_rank: int = Field(1, ge=1)
    """Smallest rank of a module."""
    max_rank: int | None = Field(None, ge=1)
    """Largest rank of a module; null is the module's smaller side."""

    @model_validator(mode="after")
    def _check(self) -> AdaptiveConfig:
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(f"max_rank ({self.max_rank}) is below min_rank ({self.min_rank})")
        return self


class ReLoRAConfig(Section):
    """Options of ReLoRA. The defaults are those of the published study unless it has a fault."""

    modules: tuple[str, ...] = ("self_attn.*_proj", "mlp.*_proj")
    """Glob patterns of linear layers that become low-rank: by default all seven of every layer."""
    full: tuple[str, ...] = ()
    """Patterns of layers among `modules` that stay full-rank (hybrid rank)."""
    frozen: tuple[str, ...] = ()
    """Patterns of modules that do not train at all, low-rank or not."""
    rank: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 16
    """Rank r; a fraction such as 0.25 is a share of the model's width.
    A fraction is capped by the module's smaller side."""
    alpha: float = Field(32.0, gt=0)
    """Numerator of the scale of an update, which is alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the input of A; 0 is off.
    Masks depend on `seed.method`, the update, the process and the micro-batch's position in its
    batch."""
    trainable_scale: bool = False
    """Whether alpha / r is multiplied by a trained gain: one number per module, 1 at first."""
    restart_every: int = Field(2000, ge=0)
    """Updates between restarts; 0 never restarts, which is LoRA from scratch."""
    warm_start_steps: int = Field(0, ge=0)
    """Updates of ordinary training before anything becomes low-rank; 0 is off."""
    reset: Reset = "all"
    """Optimizer state of A and B that a restart forgets: "all", or a share of the moments' entries.
    "shared_pruning" drops entries by one random mask, "magnitude_pruning" the smallest; both
    reset the step counter too. "independent_pruning" reproduces a fault of relora-pico: one mask
    per moment, and the counter stays."""
    pruning_ratio: float = Field(0.999, ge=0, le=1)
    """Share of the moments' entries that pruning forgets."""
    adaptive: AdaptiveConfig | None = None
    """Ranks that follow the spectra of the updates; null keeps `rank`."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of the frozen W; "bfloat16" halves its memory and rounds every merge once."""
    merge_scale: Literal["alpha_over_rank", "none"] = "alpha_over_rank"
    """Scale of a merge.
    "none" reproduces a fault of relora-pico: it adds B A without the scale, and the loss jumps."""
    init: Literal["kaiming", "zeros"] = "kaiming"
    """Initial A.
    "zeros" reproduces a fault of relora-pico: because B is zero too, nothing trains before the
    first restart."""
