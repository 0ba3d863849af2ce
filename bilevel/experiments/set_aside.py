"""What is in the way of a run is moved, never deleted: it may be data.

A step goes from `ckpt/` to `ckpt-set-aside/`, under its number (a second one with that
number gets a count).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from bilevel.datasets import manifest
from bilevel.experiments import step_folder
from bilevel.experiments.restore import CheckpointError, DamagedCheckpointError

Say: TypeAlias = Callable[[str], object]
"""Is told what was moved, and where it is."""


def later(directory: Path, after: int, say: Say) -> None:
    """Moves the steps after one."""
    for step in [one for one in step_folder.steps(directory) if one > after]:
        say(f"step {step} is set aside in {_moved(directory / str(step))}")


def unsealed(directory: Path, mark: str, say: Say) -> None:
    """Moves the steps without a list of checksums.

    Args:
      directory: of the checkpoints.
      mark: stands in Orbax's metadata of a step that is ours.
      say: see `Say`.

    Raises:
      CheckpointError: the folder holds nothing but the checkpoints of others.
    """
    for folder in step_folder.unsealed(directory):
        is_ours = step_folder.is_marked(folder, mark)
        if not (is_ours or step_folder.steps(directory)):
            raise CheckpointError(
                f"{folder} is no checkpoint of this version of bilevel; give another"
                " folder"
            )
        say(
            f"warning: step {folder.name} has no {manifest.NAME}: its save was cut"
            f" short, or a copy of it; it is set aside in {_moved(folder)}"
        )


def damaged(directory: Path, say: Say) -> None:
    """Moves the steps that Orbax, which reads a bit of every one, would stumble over.

    Raises:
      CheckpointError: the last one is damaged, which is a matter for the user.
    """
    for step in step_folder.steps(directory):
        folder = directory / str(step)
        try:
            step_folder.check_small_files(folder)
        except manifest.DamagedFileError as error:
            if step == step_folder.latest_step(directory):
                message = f"checkpoint {folder} is damaged: {error}"
                raise DamagedCheckpointError(message) from error
            where = _moved(folder)
            say(f"warning: step {step} is damaged; it is set aside in {where}: {error}")


def seal(directory: Path, say: Say) -> None:
    """Moves the seal of a run that is not finished."""
    where = _free(directory / f"{manifest.NAME}-set-aside")
    (directory / manifest.NAME).rename(where)
    say(
        f"warning: {directory} is sealed, but has no summary.json: its end was cut"
        f" short, or the file is lost; the seal is set aside in {where}"
    )


def _moved(folder: Path) -> Path:
    aside = folder.parent.with_name(f"{folder.parent.name}-set-aside")
    aside.mkdir(exist_ok=True)
    return folder.rename(_free(aside / folder.name))


def _free(path: Path) -> Path:
    """Returns a path that does not exist yet: this one, or with a count."""
    free, count = path, 1
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}-{count}")
    return free
