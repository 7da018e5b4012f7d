"""`log=wandb`: Weights & Biases (`pip install babyjax[wandb]`); WANDB_MODE=offline keeps it on this machine."""

import math
from pathlib import Path
from typing import Any

import wandb

from babyjax.files import refuse_link
from babyjax.training.events import Event


class WandbSink:
    """Logs the loss of every step, evaluated losses and the speed as a wandb run named after the run directory."""

    def __init__(self, folder: Path, step: int, config: dict[str, Any]):
        refuse_link(folder / "wandb")
        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project="babyjax",
            name=folder.name,
            dir=str(folder),
            config=config,
            settings=settings,
            reinit="create_new",  # seeds side by side log at the same time
        )

    def __call__(self, event: Event) -> None:
        first = event.step - len(event.train_losses) + 1
        for step, loss in enumerate(event.train_losses, first):
            row = {} if math.isnan(loss) else {"loss/step": float(loss)}  # NaN: nothing was measured
            if step == event.step:
                row |= {f"loss/{name}": split.per_token for name, split in (event.losses or {}).items()}
                row |= {"speed/steps_per_second": len(event.train_losses) / event.seconds} if event.seconds else {}
            self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()
