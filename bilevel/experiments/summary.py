"""summary.json, the last file of a run, and the seal that is written with it."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bilevel.experiments import digests, folders, logs, seal, step_folder
from bilevel.experiments.folders import CHECKPOINTS, Folder


def write(
    folder: Folder,
    result: Any,
    seconds: float,
    links: step_folder.Links,
    written_later: Collection[str],
) -> None:
    """Seals the folder and writes the summary, once and for all if it is the same.

    Args:
      folder: of the run.
      result: of the program, in JSON.
      seconds: of training.
      links: of the lines.
      written_later: files that the program may write until the run closes.

    Raises:
      FolderError: the disk refuses, or the folder was deleted.
      DamagedFileError: the last state is damaged.
    """
    path = folder.path / folders.SUMMARY
    if path.exists() and json.loads(path.read_text())["result"] == result:
        return
    content = {"status": "finished", "result": result, "time": round(seconds, 3)}
    content |= _last_state(folder.path / CHECKPOINTS)
    content |= {"lines": links.lines, "missing": links.missing}
    text = json.dumps(content, indent=2) + "\n"
    with folder.errors():
        seal.write(folder.path, text, without=[logs.NAME, *written_later])
    folder.replace(folders.SUMMARY, text)


def _last_state(folder: Path) -> dict[str, Any]:
    """Describes the last state, and which one is the best."""
    step = step_folder.latest_step(folder)
    if step is None:
        return {}
    sealed = step_folder.read(folder / str(step))
    return {
        "step": step,
        "state_sha256": digests.digest_of(sealed.records),
        "best_step": step_folder.best_step(folder),
    }
