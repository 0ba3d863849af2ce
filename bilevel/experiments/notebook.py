"""The notebook that this process is the kernel of, if it is one."""

import sys
from typing import Any


def is_there() -> bool:
    """Says whether this process is the kernel of a notebook, or IPython."""
    return _shell() is not None


def _shell() -> Any:
    # Not imported: where there is a notebook, it is there already.
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def cells_run_so_far() -> str:
    """Returns the text of the notebook's cells, '' where there is no notebook."""
    shell = _shell()
    texts = [] if shell is None else shell.user_ns.get("In", [])
    numbered = [f"# In [{n}]:\n{text}\n" for n, text in enumerate(texts) if text]
    return "\n".join(numbered)
