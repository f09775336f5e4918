"""What every process of an engine under test does first: it keeps our log, and SGLang's stand-ins.

Python imports this module at its start in every process that has this folder on PYTHONPATH, worker
processes included. `torchvision` and `sgl_kernel` bring image models and GPU kernels; their wheels
need a CUDA torch; SGLang imports them and a text model on a CPU never calls them. The one idea of
the stand-ins: last on the path, so that a real package wins.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import types
from collections.abc import Sequence
from typing import Any

ABSENT = ("torchvision", "sgl_kernel")

LOG = "ENGINES_TEST_LOG"
"""Names the file that `loaderhint` logs to, from whichever process."""

SGLANG = "SGLANG_USE_CPU_ENGINE"
"""Set where SGLang runs; vLLM needs no stand-ins."""


class Name(type):
    """A name of an absent package: every attribute and every call of it is itself."""

    def __getattr__(cls, name: str) -> Any:
        """Any attribute; dunders are Python's own questions and are answered truly."""
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Any call."""
        return cls


class Absent(types.ModuleType):
    """A module that has every name."""

    __path__: list[str] = []  # noqa: RUF012 a package, as importlib knows it

    def __getattr__(self, name: str) -> Any:
        """Any attribute but dunders."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what is absent."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module for the absent packages, nothing for others."""
        del path, target
        if name.partition(".")[0] not in ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module with every name."""
        return Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is run."""


def keep_log(path: str) -> None:
    """Append what loaderhint says."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(process)d %(levelname)s %(message)s"))
    logger = logging.getLogger("loaderhint")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def stand_in() -> None:
    """Find the absent packages."""
    from transformers.utils import import_utils

    # Asked first, for the answers are kept: transformers goes on without torchvision.
    for question in ("is_torchvision_available", "is_torchvision_v2_available"):
        getattr(import_utils, question, bool)()
    sys.meta_path.append(Finder())


if LOG in os.environ:
    keep_log(os.environ[LOG])
if SGLANG in os.environ:
    stand_in()
