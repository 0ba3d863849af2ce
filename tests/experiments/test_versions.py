"""Lock files read, and compared with what is installed."""

import importlib.metadata
import re

import pytest

from bilevel.experiments import versions
from bilevel.experiments.versions import LockError, Mismatch

OLD, NEW = "python_version < '3'", "python_version >= '3'"


@pytest.fixture
def lock(tmp_path):
    def written(text):
        path = tmp_path / "requirements.lock"
        path.write_text(text)
        return path

    return written


def test_installed():
    found = versions.installed()
    for name in ("jax", "numpy", "orbax-checkpoint", "absl-py"):
        assert found[name] == importlib.metadata.version(name)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("metadata", [None, "", "Metadata-Version: 2.1\n"])
def test_a_broken_installation_is_passed_over(tmp_path, monkeypatch, metadata):
    before = versions.installed()
    folder = tmp_path / "half_removed-1.0.dist-info"
    folder.mkdir()
    if metadata is not None:
        (folder / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.installed() == before


def test_the_first_installation_on_the_path_counts(tmp_path, monkeypatch):
    folder = tmp_path / "jax-0.0.1.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\nName: Jax\nVersion: 0.0.1\n"
    (folder / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.installed()["jax"] == "0.0.1"


def test_spellings(lock):
    path = lock(
        "# a comment\n"
        "\n"
        "numpy==2.4.6\n"
        "  Orbax_Checkpoint == 0.12.8   # via -r requirements.in\n"
        "scipy==1.17.0 \\\n"
        "    --hash=sha256:aa \\\n"
        "    --hash=sha256:bb\n"
        "    # via jax\n"
        "jax[cuda12]==0.10.2 --hash=sha256:cc\n"
        "jaxlib==0.10.2+cuda12;python_version>='3'\n"
        "chex==0.1.92"
    )
    assert versions.read_lock(path) == {
        "numpy": "2.4.6",
        "orbax-checkpoint": "0.12.8",
        "scipy": "1.17.0",
        "jax": "0.10.2",
        "jaxlib": "0.10.2+cuda12",
        "chex": "0.1.92",
    }


MARKED = (
    f"jax==0.1 ; {OLD}\n"
    f"jax==0.2 ; {NEW}  # this one\n"
    f"jax==0.3 ; {NEW} and sys_platform == 'none' \\\n    --hash=sha256:aa\n"
    f"numpy==1.0 ; {OLD} or {NEW} \\\n    --hash=sha256:bb\n"
    "win32==5 ; sys_platform == 'none'\n"
)


def test_markers_are_evaluated(lock):
    assert versions.read_lock(lock(MARKED)) == {"jax": "0.2", "numpy": "1.0"}


def test_two_versions_of_a_package_are_refused(lock):
    path = lock(f"jax==0.1 ; {NEW}\njax==0.2\n")
    with pytest.raises(LockError, match=r"line 2: jax==0\.2, but it was 0\.1 before"):
        versions.read_lock(path)
    assert versions.read_lock(lock("jax==0.1\nJAX==0.1\n")) == {"jax": "0.1"}


def test_versions_are_compared_as_pip_does(lock):
    """Not as texts: 0.12 is 0.12.0, and a build for an accelerator is no drift."""
    path = lock("flax==0.12\njaxlib==0.10.2\nnumpy==2.0rc1\n")
    running = {"flax": "0.12.0", "jaxlib": "0.10.2+cuda12", "numpy": "2.0.0rc1"}
    assert versions.mismatches(path, running) == []
    wrong = {"flax": "0.12.1", "jaxlib": "0.10.20", "numpy": "2.0"}
    found = versions.mismatches(path, wrong)
    assert [one.name for one in found] == ["flax", "jaxlib", "numpy"]
    (found,) = versions.mismatches(lock("flax==0.12\n"), {"flax": "my build"})
    assert found.running == "my build"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("numpy>=2", "numpy>=2"),
        ("numpy", "numpy"),
        ("numpy==", "numpy=="),
        ("numpy==2.*", "numpy==2.*"),
        ("numpy==2,!=2.1", "numpy==2,!=2.1"),
        ("numpy==2 ; pythonversion < '3'", "numpy==2 ; pythonversion < '3'"),
        ("-e .", "-e ."),
        ("numpy==2 and more", "numpy==2 and more"),
        ("--index-url https://example.org", "--index-url https://example.org"),
        ("numpy @ file:numpy", "numpy @ file:numpy"),
    ],
)
def test_what_is_no_pin(lock, line, shown):
    # Continued lines count as many.
    path = lock(f"scipy==1 \\\n    --hash=sha256:aa\njax==1\n{line}\n")
    expected = f"{path}, line 4: expected 'name==version ; marker', got {shown!r}"
    with pytest.raises(LockError, match=re.escape(expected)):
        versions.read_lock(path)


def test_missing_lock(tmp_path):
    with pytest.raises(FileNotFoundError):
        versions.read_lock(tmp_path / "requirements.lock")


def test_mismatches(lock):
    path = lock("Jax==0.10.2\nnumpy==2.4.6\nflax==0.12\nruff==1\n")
    running = {"jax": "0.10.2", "numpy": "2.5.0", "flax": "0.12.1", "other": "3"}
    found = versions.mismatches(path, running)
    assert found == [
        Mismatch("flax", "0.12", "0.12.1"),
        Mismatch("numpy", "2.4.6", "2.5.0"),
        Mismatch("ruff", "1", None),
    ]
    assert [str(one) for one in found] == [
        "flax: locked 0.12, running 0.12.1",
        "numpy: locked 2.4.6, running 2.5.0",
        "ruff: locked 1, running none",
    ]


def test_of_what_is_installed(lock):
    running = importlib.metadata.version("numpy")
    path = lock(f"numpy=={running}\njax==0.0.1\n")
    jax = importlib.metadata.version("jax")
    assert versions.mismatches(path) == [Mismatch("jax", "0.0.1", jax)]
