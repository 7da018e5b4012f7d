"""`log=tensorboard`: scalars in the run directory, written by tensorboardX (`pip install babyjax[tensorboard]`)."""

import math
import secrets
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from babyjax.files import refuse_link
from babyjax.training.events import Event


class TensorBoardSink:
    """Writes the loss of every step, evaluated losses and the speed to `folder`/tensorboard.

    The writer is tensorboardX's inner one: its `SummaryWriter` writes in a thread, and waits forever for one that died
    of a full disk.
    """

    def __init__(self, folder: Path, step: int, config: dict[str, Any]):
        directory = folder / "tensorboard"
        refuse_link(directory)
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".{secrets.token_hex(4)}")
        if step:  # TensorBoard hides what was logged after the checkpoint that the run continues from
            self._write(Record(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._writer.flush()

    def __call__(self, event: Event) -> None:
        first = event.step - len(event.train_losses) + 1
        for step, loss in enumerate(event.train_losses, first):
            if not math.isnan(loss):  # nothing was measured
                self._scalar("loss/step", float(loss), step)
        for name, loss in (event.losses or {}).items():
            self._scalar(f"loss/{name}", loss.per_token, event.step)
        if event.seconds:
            self._scalar("speed/steps_per_second", len(event.train_losses) / event.seconds, event.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._write(Record(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def _write(self, record: Record) -> None:
        record.wall_time = time.time()
        self._writer.write_event(record)
