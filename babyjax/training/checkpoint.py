"""Checkpoints: the state of a run at a step, as named arrays that say what they are.

steps/N is complete or absent: Orbax writes under another name and renames at the end. Beside the arrays stand the
sha256 of each and a description of the run. Nothing is pickled.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from babyjax.errors import CheckpointError, DivergenceError
from babyjax.training.metrics import finite_json
from babyjax.trees import named_arrays

SCHEMA_VERSION = 1

DISCARDED = ".discarded"

Tree = TypeVar("Tree")


def discard(folder: Path) -> None:
    """Remove a folder under another name, so that a kill in between does not leave half of it under its own."""
    if folder.exists():
        doomed = folder.rename(folder.with_name(folder.name + DISCARDED))
        shutil.rmtree(doomed, ignore_errors=True)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"  # TensorStore says what happened last


class Saved(NamedTuple):
    """A checkpoint as read: its arrays by name, and what it says of itself."""

    path: Path
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    def fill(self, template: Tree, part: str = "") -> Tree:
        """The arrays in the structure of `template`, a pytree of arrays (whose devices they then take) or of shapes.

        Where the template has a NumPy array it stays on the host, in the precision it was saved in.

        `part` is the path of `template` in what was saved. Raises `CheckpointError` where a name or a shape differs.
        """
        wanted = named_arrays({part: template} if part else template)
        for name, leaf in wanted.items():
            found = self.arrays.get(name)
            if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                has = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
                wants = f"{leaf.dtype}{list(leaf.shape)}"
                raise CheckpointError(f"{self.path} does not fit: {name} should be {wants}, it has {has}")
        leaves = [
            self.arrays[name]
            if isinstance(leaf, np.ndarray | np.generic)
            else jax.device_put(self.arrays[name], getattr(leaf, "sharding", None))
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)


class Checkpoints:
    """The checkpoints in a folder, `folder`/STEP each."""

    def __init__(self, folder: Path):
        self.folder = folder  # absolute: Orbax asks for it
        self._saving: Any = None
        self._val_losses: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(int(item.name) for item in self.folder.glob("*") if item.name.isdecimal())

    def best(self) -> int | None:
        """The step with the lowest validation loss among those evaluated, None where there is none."""
        losses = [(loss, step) for step in self.steps() if isinstance(loss := self._val_loss(step), float)]
        return min(losses)[1] if losses else None

    def _val_loss(self, step: int) -> float | None:
        if step not in self._val_losses:
            try:
                self._val_losses[step] = self._read_about(step)["losses"].get("val")
            except CheckpointError:  # named when it is asked for
                self._val_losses[step] = None
        return self._val_losses[step]

    def remove_unfinished(self) -> None:
        """Remove what a process that died while saving or removing has left."""
        for pattern in ("*.orbax-checkpoint-tmp*", f"*{DISCARDED}"):
            for item in self.folder.glob(pattern):
                shutil.rmtree(item, ignore_errors=True)

    def save(self, state: Any, step: int, keep: int, losses: dict[str, float], about: dict[str, Any]) -> None:
        """Write `state` as step `step`, in the background. `losses` are those evaluated at this step, if any.

        Once it is complete, all but the newest `keep` and the one of lowest validation loss are dropped. Raises
        `DivergenceError` where a number is not finite, `CheckpointError` where this or the last could not be written.
        """
        from orbax.checkpoint import v1 as ocp  # takes a second to import, and a first step need not wait for it

        self.wait()
        # Copies: the next step is given the buffers of this one while Orbax is still writing.
        arrays = {name: np.array(leaf) for name, leaf in named_arrays(state).items()}
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DivergenceError(f"{name} is no longer finite after step {step}")
        about = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "losses": finite_json(losses),
            **about,
            "sha256": {name: _digest(array) for name, array in arrays.items()},
        }
        path = self.folder / str(step)
        try:
            response = ocp.save_async(str(path), arrays, custom_metadata=about)
        except Exception as error:
            raise self._not_written(step, error) from error
        self._saving = response, step, keep
        self._val_losses[step] = about["losses"].get("val")

    def wait(self) -> None:
        """Return when the checkpoint being written is complete. Raises `CheckpointError` where it cannot be written."""
        if self._saving is None:
            return
        (response, step, keep), self._saving = self._saving, None
        try:
            response.result()
        except Exception as error:
            raise self._not_written(step, error) from error
        if step not in self.steps():
            raise self._not_written(step, OSError("it is not there"))
        kept = {*self.steps()[-keep:], self.best()}
        for old in set(self.steps()) - kept:
            discard(self.folder / str(old))

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        earlier = [saved for saved in self.steps() if saved != step]
        left = f"step {earlier[-1]:,} is kept" if earlier else "no earlier step was saved"
        return CheckpointError(
            f"cannot write the checkpoint of step {step:,} in {self.folder} ({_reason(error)}); {left}"
        )

    def _read_about(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp

        path = self.folder / str(step)
        try:
            about = ocp.metadata(str(path)).custom_metadata
        except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
            raise self._not_readable(path, error) from error
        kinds = {"schema_version": int, "step": int, "losses": dict, "sha256": dict}
        if (
            isinstance(about, dict)
            and all(isinstance(about.get(key), kind) for key, kind in kinds.items())
            and (about["schema_version"], about["step"]) == (SCHEMA_VERSION, step)
        ):
            return about
        raise CheckpointError(f"{path} is not a checkpoint of this version of babyjax at step {step}")

    def load(self, step: int) -> Saved:
        """Read step `step` into host memory. Raises `CheckpointError` for one that is damaged, changed or foreign."""
        from orbax.checkpoint import v1 as ocp

        path, about = self.folder / str(step), self._read_about(step)
        try:
            saved = ocp.metadata(str(path)).metadata
            arrays = ocp.load(str(path), {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in saved.items()})
        except Exception as error:
            raise self._not_readable(path, error) from error
        changed = [name for name, array in arrays.items() if about["sha256"].get(name) != _digest(array)]
        if changed or arrays.keys() != about["sha256"].keys():
            raise CheckpointError(f"{path} was changed after it was written: {(*changed, 'the list of arrays')[0]}")
        return Saved(path, arrays, about)

    def _not_readable(self, path: Path, error: Exception) -> CheckpointError:
        earlier = [step for step in self.steps() if step < int(path.name)]
        hint = f"; without that folder, step {earlier[-1]:,} would be used" if earlier else ""
        return CheckpointError(f"{path} is not a checkpoint that can be read ({type(error).__name__}){hint}")
