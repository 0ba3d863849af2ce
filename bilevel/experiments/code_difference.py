"""How the code of two starts differs, and what their records do not say of it.

A record is source.json of a start: see `starts`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bilevel.experiments import modules

Record: TypeAlias = Mapping[str, Any]

_SOURCES = ("program", "bilevel")


def code(before: Record, now: Record) -> list[str]:
    """Lists what differs in the code, one line each: trees of git, modules."""
    lines = [_tree_difference(name, before, now) for name in _SOURCES]
    outside = [one.get("modules") or {} for one in (before, now)]
    return [*filter(None, lines), *modules.difference(*outside)]


def other_files(before: Record, now: Record) -> list[str]:
    """Says in a line which of the new files differ that are in no record."""
    old, new = left_out(before), left_out(now)
    changed = [n for n in sorted(old.keys() & new.keys()) if old[n] != new[n]]
    lines = [f"changed: {modules.listed(changed)}"] if changed else []
    for some, others, text in ((old, new, "gone"), (new, old, "new")):
        names = sorted(some.keys() - others.keys())
        lines += [f"{text}: {modules.listed(names)}"] if names else []
    return [f"files that are not in git: {'; '.join(lines)}"] if lines else []


def unknown(record: Record) -> list[str]:
    """Lists what a record does not say, so that nobody can call it equal."""
    program = record["program"]
    found = []
    if program.get("sha256") is None:
        found.append("the text of the program")
    if program.get("commit") is not None and program.get("tree") is None:
        found.append("the changes to the program's repository")
    if record.get("modules_at") != "end":
        found.append("modules that were loaded after the start")
    outside = record.get("modules") or {}
    names = [one["file"] for one in outside.values() if one["sha256"] is None]
    names += [name for name, digest in left_out(record).items() if digest is None]
    return found + ([f"the content of {modules.listed(names)}"] if names else [])


def new_files(record: Record, redacted: Sequence[str]) -> str:
    """Says in a line which new files a record has, and what was left out of it.

    Args:
      record: of a start.
      redacted: names of the values that were left out.
    """
    new = [n for one in _SOURCES for n in (record.get(one) or {}).get("new", [])]
    gone, parts = left_out(record), []
    if new:
        parts.append(f"{len(new)} new files are in the record ({modules.listed(new)})")
    if gone:
        names = modules.listed(gone)
        parts.append(f"{len(gone)} new files are left out, but for SHA-256 ({names})")
    if redacted:
        names = modules.listed(dict.fromkeys(redacted))
        parts.append(f"the values of {names} are left out")
    return "; ".join(parts)


def left_out(record: Record) -> dict[str, str | None]:
    """Returns the SHA-256 of the new files that are in no record, None if not known."""
    found: dict[str, str | None] = {}
    for name in _SOURCES:
        # Earlier versions recorded the names only.
        one = (record.get(name) or {}).get("left_out") or {}
        found |= one if isinstance(one, dict) else dict.fromkeys(one)
    return found


def _tree_difference(which: str, before: Record, now: Record) -> str:
    old, new = before.get(which) or {}, now.get(which) or {}
    trees = [_trees(one) for one in (old, new)]
    is_same = trees[0] == trees[1]
    if None in trees:  # all that is known is the file of the program
        is_same = is_same and old.get("sha256") == new.get("sha256")
    name = "code" if which == "program" else "code of bilevel"
    return "" if is_same else f"{name}: {_state(old)} -> {_state(new)}"


def _trees(code: Record) -> list[str] | None:
    """Returns git's names for the content of a repository and of its submodules."""
    if code.get("tree") is None:
        return None
    inner = code.get("submodules") or {}
    return [code["tree"], *(f"{path} {one['tree']}" for path, one in inner.items())]


def _state(record: Record) -> str:
    if record.get("commit") is None:
        digest = record.get("sha256")
        known = f", program sha256 {digest[:12]}" if digest else ""
        return f"no commit{known}"
    dirty = " with changes" if record["is_dirty"] else ""
    return f"commit {record['commit'][:12]}{dirty}"
