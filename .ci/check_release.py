"""Prints what CHANGELOG.md says of a release: `python .ci/check_release.py v0.1.0`.

Fails where the tag is not the version in pyproject.toml, or where the section
`## [0.1.0] - <date>` is missing or empty.  Runs in the top folder of the repository.
"""

import re
import sys
import tomllib
from pathlib import Path


def notes(tag: str, pyproject: str, changelog: str) -> str:
    """The text of the section of a tag.

    Raises:
        ValueError: the repository is not ready for this tag.
    """
    version = tomllib.loads(pyproject)["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"the tag {tag} is not v{version}, as pyproject.toml says")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    section = re.search(heading + r"(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - <date>'")
    text = section[1].strip()
    if not text:
        raise ValueError(f"the section of {version} in CHANGELOG.md is empty")
    return text


if __name__ == "__main__":
    try:
        (given,) = sys.argv[1:]
        files = (Path(name).read_text() for name in ("pyproject.toml", "CHANGELOG.md"))
        sys.stdout.write(notes(given, *files) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")
