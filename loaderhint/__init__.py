"""Tell fusefs what a loader will read next, from inside the loader. Standard library only.

`hint` and `progress` for any loader; `loaderhint.torch` loads tensors itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaderhint.hints import Hint, hint, progress
    from loaderhint.plan import keep_experts, keep_layers
    from loaderhint.wishes import Group, Progress

__all__ = ["Group", "Hint", "Progress", "hint", "keep_experts", "keep_layers", "progress"]

_HOMES = {
    "Group": "loaderhint.wishes",
    "Hint": "loaderhint.hints",
    "Progress": "loaderhint.wishes",
    "hint": "loaderhint.hints",
    "keep_experts": "loaderhint.plan",
    "keep_layers": "loaderhint.plan",
    "progress": "loaderhint.hints",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the daemon takes two small modules of this package and no client."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
