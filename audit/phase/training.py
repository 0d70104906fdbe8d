"""A training loop that can be killed anywhere and run again."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from audit.progress import progress_bar

#: Steps whose mean loss makes one line of the loss curve.
LOG_EVERY = 100


def fit(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    folder: Path,
    weight_decay: float = 0.01,
    checkpoint_seconds: float = 60.0,
    clip_gradients: Callable[[nn.Module], object] = lambda modules: nn.utils.clip_grad_norm_(modules.parameters(), 1.0),
    on_step: Callable[[int], None] | None = None,
) -> nn.ModuleDict:
    """Train `modules` for `steps` optimizer steps and return their exponential moving average.

    Every step draws from a generator seeded by (seed, step) alone, so a run that was killed and resumed sees the
    same batches as one that was not. State is written to `folder/NAME.state.pt` every `checkpoint_seconds` and at
    the end; the loss curve goes to `folder/NAME.jsonl`, one line per `LOG_EVERY` steps.

    Args:
        name: of the stage, for the bar and the files.
        modules: what is trained, by name.
        loss: one step's loss, from the step's generator; a vector where several networks train side by side, each
            entry the loss of one of them.
        steps: optimizer steps in all.
        learning_rate: peak of a cosine schedule with 2% warm-up.
        ema_decay: in [0, 1).
        seed: of the draws.
        folder: the run folder; made when missing.
        weight_decay: of AdamW.
        checkpoint_seconds: how much work a kill can cost.
        clip_gradients: called between the backward pass and the step.
        on_step: called with the number of steps done, first before any; a bar is drawn when None.

    Returns:
        The averaged modules, in evaluation mode, without gradients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, curve_file = folder / f"{name}.state.pt", folder / f"{name}.jsonl"
    optimizer = torch.optim.AdamW(modules.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 50, steps)
    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    done, curve = 0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        modules.load_state_dict(state["modules"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done, curve = state["done"], state["curve"]

    def save() -> None:
        state = {
            "modules": modules.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "done": done,
            "curve": curve,
        }
        # Before the state: a run that is done writes neither again.
        curve_file.write_text("".join(json.dumps(line) + "\n" for line in curve))
        content = io.BytesIO()  # torch's own writer does not say that a disk is full
        torch.save(state, content)
        state_file.with_suffix(".tmp").write_bytes(content.getbuffer())
        state_file.with_suffix(".tmp").replace(state_file)

    modules.train()
    generator = torch.Generator()
    saved_at, running = time.monotonic(), []
    with progress_bar() as bar:
        bar.disable = on_step is not None
        task = bar.add_task(name, total=steps, completed=done, note="")
        if on_step is not None:
            on_step(done)
        for step in range(done, steps):
            generator.manual_seed(seed * 1_000_003 + step)
            value = loss(generator)
            optimizer.zero_grad(set_to_none=True)
            value.sum().backward()
            clip_gradients(modules)
            optimizer.step()
            schedule.step()
            average.update_parameters(modules)
            running.append(value.detach())
            done = step + 1
            if done % LOG_EVERY == 0 or done == steps:
                mean = torch.stack(running).mean(0)
                curve.append({"step": done, "loss": mean.tolist()})
                bar.update(task, note=f"loss {float(mean.mean()):.4f}")
                running = []
            # Between two lines of the curve nothing is saved: the running mean would be lost with a kill.
            if done == steps or (not running and time.monotonic() - saved_at > checkpoint_seconds):
                save()
                saved_at = time.monotonic()
            bar.update(task, completed=done)
            if on_step is not None:
                on_step(done)
    averaged = average.module
    assert isinstance(averaged, nn.ModuleDict)
    return averaged.eval().requires_grad_(False)
