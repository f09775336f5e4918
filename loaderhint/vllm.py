"""The plugin of vLLM: hints with the formats it has, and a format of its own, `fusefs`.

vLLM calls `register` in every process (entry point group `vllm.general_plugins`) and looks up its
loaders by format. The one idea: both loaders are vLLM's own, subclassed where it lists its files
and where it turns files into tensors; filters, prefixes and tracking stay its own. Nothing here is
imported before vLLM calls, and whatever is wrong here never stops a server.

Read in vLLM 0.32 and 0.33 (`model_executor/model_loader/default_loader.py`).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from loaderhint import serving
from loaderhint.files import SUFFIX, natural_order
from loaderhint.wishes import Group

FORMAT = "fusefs"
"""For `--load-format`."""

HINTED = ("auto", "hf", "mistral", "safetensors")
"""The formats of vLLM's default loader that read safetensors by path."""

_log = logging.getLogger("loaderhint")


def register() -> None:
    """Add the format, and the hints to those of the default loader. Raises nothing."""
    try:
        _register()
    except Exception as error:  # noqa: BLE001 what it raises would stop the server
        _log.warning("this vLLM loads without loaderhint: %s: %s", type(error).__name__, error)


def _register() -> None:
    from vllm.model_executor import model_loader

    loaders = model_loader._LOAD_FORMAT_TO_MODEL_LOADER  # noqa: SLF001 as nothing else tells
    if FORMAT in loaders:
        return
    hinting = _hinting_loader()
    for name in HINTED:
        # Another plugin's loader stays. By the table: register_model_loader would warn of it.
        if loaders.get(name) is model_loader.DefaultModelLoader:
            loaders[name] = hinting
    model_loader.register_model_loader(FORMAT)(_streaming_loader())


def _hinting_loader() -> Any:
    from vllm.model_executor.model_loader import DefaultModelLoader

    class HintingModelLoader(DefaultModelLoader):
        """Loads as ever; fusefs hears of the files as soon as they are listed."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self._told = serving.Told()

        def _prepare_weights(self, *args: Any, **kwargs: Any) -> Any:
            prepared = super()._prepare_weights(*args, **kwargs)
            # Listed by glob, read in this order.
            self._told.tell(sorted(prepared[1], key=natural_order), _group)
            return prepared

        def _get_weights_iterator(self, source: Any) -> Iterator[Any]:
            return self._told.while_read(super()._get_weights_iterator(source))

        def download_model(self, model_config: Any) -> None:
            super().download_model(model_config)
            self._told.close()

    return HintingModelLoader


def _streaming_loader() -> Any:
    from vllm.model_executor.model_loader import DefaultModelLoader

    class StreamingModelLoader(DefaultModelLoader):
        """The default loader with our tensors: `--load-format fusefs`."""

        counter_before_loading_weights: float

        def __init__(self, load_config: Any) -> None:
            self._settings = serving.settings_of(load_config.model_loader_extra_config)
            # The default loader knows neither our format nor our keys.
            config = copy.copy(load_config)
            config.load_format = "auto"
            config.model_loader_extra_config = {}
            super().__init__(config)

        def _get_weights_iterator(self, source: Any) -> Iterator[Any]:
            folder, files, _, index = self._prepare_weights(
                source.model_or_path,
                source.subfolder,
                source.revision,
                source.fall_back_to_pt,
                source.allow_patterns_overrides,
            )
            torchao = self.load_config.safetensors_load_strategy == "torchao"
            if torchao or not all(file.endswith(SUFFIX) for file in files):
                return super()._get_weights_iterator(source)  # type: ignore[no-any-return]
            files = sorted(_needed(self, source, folder, files, index), key=natural_order)
            if self.counter_before_loading_weights == 0.0:
                self.counter_before_loading_weights = time.perf_counter()
            tensors = serving.stream(
                files,
                self._settings,
                group=_group(files),
                process_group=_process_group(),
                keep=_keep(self.local_expert_ids),
            )
            return ((source.prefix + name, tensor) for name, tensor in tensors)

    return StreamingModelLoader


def _needed(loader: Any, source: Any, folder: str, files: list[str], index: str) -> list[str]:
    """The files that hold what this model needs, by vLLM's own filters."""
    from vllm.model_executor.model_loader import weight_utils

    prefixes = loader._encoder_only_lm_prefixes  # noqa: SLF001 of the class we extend
    if prefixes is not None:
        files = weight_utils.filter_mm_encoder_only_safetensors_files(
            files,
            folder,
            index,
            prefixes,
            weights_mapper=loader._encoder_only_weights_mapper,  # noqa: SLF001
        )
        if not files:
            raise RuntimeError(
                f"the filter of --mm-encoder-only leaves no file of {source.model_or_path}"
            )
    if source.is_unused_weight is not None:
        files = weight_utils.filter_safetensors_files_by_weight_name(files, source.is_unused_weight)
    return files


def _keep(local_expert_ids: set[int] | None) -> Any:
    """What this rank of an expert-parallel job needs; None for everything."""
    if local_expert_ids is None:
        return None
    from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

    return lambda name: not should_skip_weight(name, local_expert_ids)


def _group(files: Sequence[str]) -> Group | None:
    """The ranks of this host."""
    try:
        from vllm.distributed import parallel_state

        world = parallel_state.get_world_group()
        size = world.world_size // max(1, parallel_state.get_node_count())
        return serving.group_of(files, world.rank_in_group % max(1, size), size)
    except (ImportError, AttributeError, AssertionError) as error:
        _log.debug("no group of ranks: %s", error)
        return None


def _process_group() -> Any:
    """All ranks, over gloo: our tensors are on the CPU. None before there are any."""
    try:
        from vllm.distributed import parallel_state

        world = parallel_state.get_world_group()
    except (ImportError, AttributeError, AssertionError):
        return None
    return world.cpu_group if world.world_size > 1 else None
