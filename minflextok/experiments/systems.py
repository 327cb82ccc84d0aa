"""The systems of a comparison: FlexTok, its baselines and its ablations."""

from dataclasses import dataclass, field

from ..tokenizer import FlexTok
from ..training.objective import TokenizerObjective
from .baselines import Grid, RegressionObjective, Regressor


@dataclass(frozen=True)
class System:
    """A system, by its differences from FlexTok."""

    about: str
    cls: type[FlexTok] = FlexTok
    objective: type[TokenizerObjective] = TokenizerObjective
    model: dict = field(default_factory=dict)  # fields of the TokenizerConfig
    recipe: dict = field(default_factory=dict)  # fields of the TrainConfig
    budgets: tuple[int, ...] = ()  # numbers of tokens that it decodes from (none: 1, 2, 4, ..., K)
    repa: bool = True


NO_NESTED_DROPOUT = {"nested_from": 1.0, "nested_full": 1.0}


def _titok(length: int) -> System:
    return System(
        f"TiTok-style (regression only): always {length} token{'s' * (length > 1)}",
        Regressor,
        RegressionObjective,
        {"num_registers": length},
        NO_NESTED_DROPOUT,
        (length,),
        repa=False,
    )


def grid(patch: int, size: int = 32) -> System:
    tokens = (size // patch) ** 2
    return System(
        f"2D grid (regression only): one token for each {patch}x{patch} patch",
        Grid,
        RegressionObjective,
        {"patch_size": patch, "num_registers": tokens},
        NO_NESTED_DROPOUT,
        (tokens,),
        repa=False,
    )


# Changes to the preset of the comparison; the grids are for 32x32 images.
SYSTEMS = {
    "flextok": System("FlexTok"),
    "titok-1": _titok(1),
    "titok-4": _titok(4),
    "titok-16": _titok(16),
    "one-d-piece": System(
        "One-D-Piece-style (regression only): tail token drop from the first step",
        Regressor,
        RegressionObjective,
        {"keep_k_mode": "uniform"},
        {"nested_from": 0.0, "nested_full": 0.0},
        repa=False,
    ),
    "grid-16": grid(8),
    "grid-64": grid(4),
    "no-repa": System("FlexTok without REPA", repa=False),
    "no-nested": System("FlexTok without nested dropout", recipe=NO_NESTED_DROPOUT),
    "uniform": System("FlexTok with uniform k in nested dropout", model={"keep_k_mode": "uniform"}),
    "full-attention": System(
        "FlexTok with full attention among registers", model={"causal_registers": False}
    ),
    "regression": System(
        "FlexTok with a regression decoder", Regressor, RegressionObjective, repa=False
    ),
}
