"""Every published detector on the same prompts and the same noise, at 1, 4 and 16 seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from audit.auditor import Auditor
from audit.bench import detectors
from audit.evidence.screening import contrast_curvature, measure_contrast
from audit.model.denoiser import MeteredDenoiser
from audit.model.sampling import SamplerSettings, draw_noise

#: Numbers of seeds that detectors are run at.
SEEDS = (1, 4, 16)
#: Timestep of the late cosine (Asthana & Belagiannis 2026), and their γ of Stable Diffusion 1 and 2.
LATE, GAMMAS = 41, (2.0, 0.1)
#: Guidance that leaves images as they are, and has both branches evaluated.
BOTH_BRANCHES = 1.0 + 1e-6

_T = TypeVar("_T")


@dataclass(frozen=True)
class Detection:
    """A detector at a number of seeds.

    Attributes:
        name: of the detector.
        seeds: n.
        evaluations: NFE of a prompt.
        seconds: of a prompt, on average: of the measurement that it needs, whatever else was measured with it.
        scores: of every prompt, higher is more memorized, (prompts,).
    """

    name: str
    seeds: int
    evaluations: int
    seconds: float
    scores: NDArray[np.float64]


@dataclass
class _Prompt:
    """What the detectors need of a prompt, all of it by seed."""

    norm: NDArray[np.float64]
    jeon: NDArray[np.float64]
    late: NDArray[np.float64]
    contrasts: NDArray[np.float64]
    last: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    displacements: NDArray[np.float64]
    tiles: NDArray[np.float64]


class Baselines:
    """Measures prompts of a checkpoint for every published detector.

    Args:
        auditor: of the checkpoint.
        sampler: the settings under audit.
        first_seed: noise seeds are consecutive from here.

    Raises:
        InvalidInput: the checkpoint has no contrast, which most of the detectors see alone.
    """

    def __init__(self, auditor: Auditor, sampler: SamplerSettings, first_seed: int) -> None:
        self._auditor = auditor
        self._checkpoint = auditor.checkpoint
        self._sampler = sampler if sampler.guided else replace(sampler, guidance=BOTH_BRANCHES)
        auditor.require_screening(self._sampler)
        self._seeds = range(first_seed, first_seed + max(SEEDS))
        timesteps = auditor.timesteps(sampler)
        self._first, self._last = int(timesteps[0]), int(timesteps[-1])
        #: Seconds and evaluations of each measurement, over all prompts.
        self._seconds = dict.fromkeys(("first", "jeon", "late", "trajectory", "diagonal"), 0.0)
        self._evaluations = dict.fromkeys(self._seconds, 0)
        self._measured = 0

    def run(
        self, prompts: Sequence[str], ordinary: Sequence[str], on_prompt: Callable[[], None] = lambda: None
    ) -> list[Detection]:
        """Scores of prompts.

        Args:
            prompts: to be scored.
            ordinary: what displacements are compared with, at least two samples' worth.
            on_prompt: called after every prompt.
        """
        measured = []
        for prompt in prompts:
            measured.append(self._measure(prompt))
            on_prompt()
        usual = np.concatenate([self._displacements(prompt) for prompt in ordinary])
        found = []
        for n in SEEDS:
            for name, parts, score in self._detectors(usual):
                if name.startswith("Carlini") and n < 2:
                    continue
                scores = np.asarray([score(one, n) for one in measured])
                share = n / max(SEEDS) / self._measured
                found.append(
                    Detection(
                        name,
                        n,
                        round(sum(self._evaluations[part] for part in parts) * share),
                        sum(self._seconds[part] for part in parts) * share,
                        scores,
                    )
                )
        return found

    def _detectors(
        self, usual: NDArray[np.float64]
    ) -> list[tuple[str, tuple[str, ...], Callable[[_Prompt, int], float]]]:
        """Name, the measurements it needs, and its score from the first n seeds."""
        named: list[tuple[str, tuple[str, ...], Callable[[_Prompt, int], float]]] = [
            ("Wen et al., first step", ("first",), lambda one, n: one.norm[:n].mean()),
            ("Wen et al., all steps", ("trajectory",), lambda one, n: one.contrasts[:n].mean()),
            ("Jeon et al.", ("first", "jeon"), lambda one, n: one.jeon[:n].mean()),
            ("Kim & Lee, last contrast", ("trajectory",), lambda one, n: one.last[:n].mean()),
            ("Kim & Lee, diagonal", ("trajectory", "diagonal"), lambda one, n: one.diagonal[:n].mean()),
            ("Carlini et al.", ("trajectory",), lambda one, n: detectors.closest_pair(one.tiles[:n, :n])),
            (
                "trajectory displacement",
                ("trajectory",),
                lambda one, n: detectors.displacement(one.displacements[:n], usual).mean(),
            ),
        ]
        for gamma in GAMMAS:
            named.append(
                (
                    f"Asthana & Belagiannis, γ = {gamma:g}",
                    ("first", "late"),
                    lambda one, n, gamma=gamma: (one.norm[:n] + gamma * one.late[:n]).mean(),  # type: ignore[misc]
                )
            )
        return named

    @torch.inference_mode()
    def _measure(self, prompt: str) -> _Prompt:
        meter = MeteredDenoiser(self._checkpoint.denoiser)
        condition, empty = (self._auditor.condition(text, self._sampler) for text in (prompt, ""))
        shape = self._checkpoint.latent_shape(self._sampler)
        noise = draw_noise(self._seeds, shape)[0].to(self._checkpoint.device, self._checkpoint.dtype)

        def timed(part: str, work: Callable[[], _T]) -> _T:
            start, before = time.perf_counter(), meter.evaluations
            found = work()
            self._seconds[part] += time.perf_counter() - start
            self._evaluations[part] += meter.evaluations - before
            return found

        self._measured += 1
        first = timed("first", lambda: measure_contrast(meter, noise, self._first, condition, empty))
        curvature = timed("jeon", lambda: contrast_curvature(meter, noise, first, condition, empty))
        late = timed("late", lambda: measure_contrast(meter, noise, LATE, condition, empty))
        samples = timed(
            "trajectory", lambda: self._checkpoint.sample(self._sampler, condition, empty, self._seeds, meter)
        )
        latents = samples.latents
        alpha = float(meter.schedule.alphas[self._last])
        diagonal = timed(
            "diagonal",
            lambda: detectors.kim_diagonal_map(meter, alpha * latents, self._last, condition, empty),
        )
        contrast_map = samples.contrast_map
        assert contrast_map is not None
        images = self._checkpoint.decode(latents).cpu()

        def array(values: torch.Tensor) -> NDArray[np.float64]:
            return values.cpu().double().numpy()

        return _Prompt(
            norm=array(detectors.wen(first)),
            jeon=array(detectors.jeon(first, curvature)),
            late=array(late.alignment),
            contrasts=array(samples.contrasts.mean(1)),
            last=array(detectors.kim_contrast(contrast_map)),
            diagonal=array(detectors.kim_contrast(diagonal)),
            displacements=array(samples.displacements),
            tiles=detectors.carlini(images),
        )

    def _displacements(self, prompt: str) -> NDArray[np.float64]:
        condition, empty = (self._auditor.condition(text, self._sampler) for text in (prompt, ""))
        samples = self._checkpoint.sample(self._sampler, condition, empty, self._seeds[:4])
        return samples.displacements.double().numpy()
