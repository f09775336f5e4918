"""The plugin of SGLang: hints with its default format, and tensors by `--load-format private`.

SGLang calls `register` in every process (entry point group `sglang.srt.plugins`) and applies the
hooks that it registers. Its list of formats is closed, but for `private`: whoever provides the
module `sglang.private.private_model_loader` is that loader. We do, unless somebody has.

The one idea: SGLang's loader lists files, filters and names as ever; hooks tell fusefs what it
listed, and for `private` stand in for the two functions that turn safetensors files into tensors.
Nothing of SGLang is imported before it calls.

Read in SGLang 0.5.23 (`srt/model_loader/loader.py`, `srt/plugins/hook_registry.py`).
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from loaderhint import serving
from loaderhint.wishes import Group

FORMAT = "private"
"""For `--load-format`; SGLang's own name for a loader from outside."""

_PACKAGE = "sglang.private"
_MODULE = "sglang.private.private_model_loader"
_CLASS = "PrivateModelLoader"

_LOADER = "sglang.srt.model_loader.loader.DefaultModelLoader"
_WEIGHTS = "sglang.srt.model_loader.weight_utils"
_ITERATORS = (
    f"{_WEIGHTS}.buffered_multi_thread_safetensors_weights_iterator",
    f"{_WEIGHTS}.safetensors_weights_iterator",
)
"""Which of the two is called depends on the settings of prefetch and threads."""

_log = logging.getLogger("loaderhint")
_streaming: ContextVar[serving.Settings | None] = ContextVar("loaderhint_sglang", default=None)
_told = serving.Told()
"""The hints of the model that is loaded: one at a time in a process."""


def register() -> None:
    """Hook the default loader where there is a mount, and offer `private`. Raises nothing."""
    try:
        if serving.sees_mounts():
            _hook()
        _offer_private_loader()
    except Exception as error:  # noqa: BLE001 no error of ours may stop a server
        _log.warning("this SGLang loads without loaderhint: %s: %s", type(error).__name__, error)


def _hook() -> None:
    """Register the hooks, once in a process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    registered = HookRegistry._hooks.get(_ITERATORS[0], ())  # noqa: SLF001 nothing else tells
    if any(hook is _stand_in for _, hook, _ in registered):
        return
    HookRegistry.register(f"{_LOADER}._prepare_weights", _tell, HookType.AFTER)
    HookRegistry.register(f"{_LOADER}.load_weights_and_postprocess", _end_hints, HookType.AROUND)
    for name in _ITERATORS:
        HookRegistry.register(name, _stand_in, HookType.AROUND)


def _tell(prepared: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
    """After the files were listed, in the order of this rank: say so. The result stays."""
    del args, kwargs
    if not getattr(loader, "streams_by_itself", False):
        _told.tell(prepared[1], _group)


def _end_hints(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around the load of the weights, by whichever way: the hints end with it."""
    try:
        return load(*args, **kwargs)
    finally:
        _told.close()


def _stand_in(original: Callable[..., Any], files: Sequence[str], *args: Any, **kwargs: Any) -> Any:
    """Around the functions that make tensors of files: ours, if our loader calls."""
    settings = _streaming.get()
    if settings is None:
        return original(files, *args, **kwargs)
    return serving.stream(
        list(files), settings, group=_group(files), process_group=_process_group()
    )


def _offer_private_loader() -> None:
    """Be `sglang.private.private_model_loader`, if nobody is. The class is made when asked for."""
    if _PACKAGE in sys.modules:
        return
    if importlib.util.find_spec(_PACKAGE) is not None:
        _log.info("--load-format %s belongs to another package here", FORMAT)
        return
    package = ModuleType(_PACKAGE, "Made by loaderhint.")
    package.__path__ = []
    module = ModuleType(_MODULE, "The loader of loaderhint.")
    module.__getattr__ = _attribute  # type: ignore[method-assign]
    sys.modules[_PACKAGE] = package
    sys.modules[_MODULE] = module


def _attribute(name: str) -> Any:
    if name != _CLASS:
        raise AttributeError(name)
    loader = _streaming_loader()
    setattr(sys.modules[_MODULE], _CLASS, loader)
    return loader


def _streaming_loader() -> Any:
    from sglang.srt.configs.load_config import LoadFormat
    from sglang.srt.model_loader.loader import DefaultModelLoader
    from sglang.srt.plugins.hook_registry import HookRegistry

    # Without a mount in sight at the start nothing was hooked.
    _hook()
    HookRegistry.apply_hooks()

    class PrivateModelLoader(DefaultModelLoader):
        """The default loader with our tensors: `--load-format private`."""

        streams_by_itself = True

        def __init__(self, load_config: Any) -> None:
            self._settings = serving.settings_of(load_config.model_loader_extra_config)
            # The default loader knows neither this format nor our keys.
            config = copy.copy(load_config)
            config.load_format = LoadFormat.AUTO
            config.model_loader_extra_config = {}
            super().__init__(config)

        def _get_weights_iterator(self, *args: Any, **kwargs: Any) -> Any:
            with _stand_in_for(self._settings):
                return super()._get_weights_iterator(*args, **kwargs)

    return PrivateModelLoader


@contextmanager
def _stand_in_for(settings: serving.Settings) -> Iterator[None]:
    token = _streaming.set(settings)
    try:
        yield
    finally:
        _streaming.reset(token)


def _group(files: Sequence[str]) -> Group | None:
    """The ranks of this host."""
    try:
        from sglang.srt.distributed.parallel_state import get_world_group
        from sglang.srt.runtime_context import get_server_args

        world = get_world_group()
        size = world.world_size // max(1, getattr(get_server_args(), "nnodes", 1))
        return serving.group_of(files, world.rank_in_group % max(1, size), size)
    except (ImportError, AttributeError, AssertionError, ValueError) as error:
        _log.debug("no group of ranks: %s", error)
        return None


def _process_group() -> Any:
    """All ranks, over gloo: our tensors are on the CPU. None before there are any."""
    try:
        from sglang.srt.distributed.parallel_state import get_world_group

        world = get_world_group()
    except (ImportError, AttributeError, AssertionError):
        return None
    return world.cpu_group if world.world_size > 1 else None
