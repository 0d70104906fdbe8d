"""How much an audit may spend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings
from audit.limits import MAX_DEFINITION_SAMPLES, MAX_SEED, MAX_SEEDS

#: Most seeds that are drawn side by side.
GROUP = 64


@dataclass(frozen=True)
class Budget:
    """How much an audit may spend.

    Seeds are drawn in groups until the answer is settled.

    Attributes:
        seeds: samples drawn at most.
        minimum_seeds: samples drawn at least; no more than `seeds`.
        first_seed: samples use the consecutive seeds from here.
        definition_samples: N: fractions are those expected among so many samples.
        curvature: what is spent on curvature.
    """

    seeds: int = 32
    minimum_seeds: int = 4
    first_seed: int = 0
    definition_samples: int = 512
    curvature: CurvatureSettings = field(default_factory=CurvatureSettings)

    def __post_init__(self) -> None:
        """Raises InvalidInput, naming the field, for values out of range."""
        for name, low, high in (
            ("seeds", 1, MAX_SEEDS),
            ("minimum_seeds", 1, MAX_SEEDS),
            ("first_seed", 0, MAX_SEED),
            ("definition_samples", 2, MAX_DEFINITION_SAMPLES),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(
                    f"{name} must be in [{low}, {high}], not {value}",
                    reason=f"{name.upper()}_OUT_OF_RANGE",
                    field=f"budget.{name}",
                )
        for name in ("samples", "probes", "steps"):
            if getattr(self.curvature, name) < 1:
                raise InvalidInput(
                    f"curvature needs at least one of its {name}", reason="CURVATURE_EMPTY", field="budget.curvature"
                )
        if not self.curvature.noise_levels or not all(0 < level <= 1 for level in self.curvature.noise_levels):
            raise InvalidInput(
                f"noise levels of curvature are in (0, 1], not {self.curvature.noise_levels}",
                reason="NOISE_LEVELS_OUT_OF_RANGE",
                field="budget.curvature",
            )
        if self.curvature.method not in ("lanczos", "dense", "off"):
            raise InvalidInput(
                f"curvature must be lanczos, dense or off, not {self.curvature.method!r}",
                reason="CURVATURE_UNKNOWN",
                field="budget.curvature",
            )

    def groups(self) -> Iterator[range]:
        """The seeds, group by group: the least number first, then each time as many again as there were before."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        done, size = 0, min(self.minimum_seeds, self.seeds)
        while done < len(seeds):
            yield seeds[done : done + min(size, GROUP)]
            done += min(size, GROUP)
            size = done
