"""The hook points of vLLM and SGLang, as far as the plugins touch them; the engines are elsewhere.

Names, signatures and order of calls are those of vLLM 0.32 and SGLang 0.5.23. That they still are
is proven by `tests/engines`, with the engines themselves.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch


@dataclass
class LoadConfig:
    """What both engines hand to a loader."""

    load_format: Any = "auto"
    model_loader_extra_config: Any = field(default_factory=dict)
    safetensors_load_strategy: str | None = None


@dataclass
class Source:
    """What of a model is loaded."""

    model_or_path: str
    revision: str | None = None
    subfolder: str | None = None
    prefix: str = ""
    fall_back_to_pt: bool = True
    allow_patterns_overrides: list[str] | None = None
    is_unused_weight: Callable[[str], bool] | None = None


def vllm_tensors(files: list[str]) -> Iterator[tuple[str, Any]]:
    """As vLLM does it."""
    for file in files:
        yield from safetensors.torch.load_file(file).items()


class VllmLoader:
    """vLLM's DefaultModelLoader."""

    def __init__(self, load_config: LoadConfig) -> None:
        if set(load_config.model_loader_extra_config) - {"num_threads"}:
            raise ValueError("Unexpected extra config keys")
        if load_config.load_format not in ("auto", "hf", "safetensors"):
            raise ValueError("Unknown load_format")
        self.load_config = load_config
        self.counter_before_loading_weights = 0.0
        self.local_expert_ids: set[int] | None = None
        self._encoder_only_lm_prefixes: tuple[str, ...] | None = None
        self._encoder_only_weights_mapper = None

    def _prepare_weights(
        self, folder: str, subfolder: str | None, revision: str | None, pt: bool, allow: Any
    ) -> tuple[str, list[str], bool, str]:
        del subfolder, revision, pt, allow
        paths = sorted(Path(folder).glob("*.safetensors"), reverse=True)
        return folder, [str(path) for path in paths], True, "model.safetensors.index.json"

    def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, Any]]:
        _, files, _, _ = self._prepare_weights(source.model_or_path, None, None, True, None)
        return ((source.prefix + name, tensor) for name, tensor in vllm_tensors(files))

    def download_model(self, folder: str) -> None:
        self._prepare_weights(folder, None, None, True, None)


def _without_named(files: list[str], is_unused: Callable[[str], bool]) -> list[str]:
    return [file for file in files if not all(map(is_unused, safetensors.torch.load_file(file)))]


def _skip_expert(name: str, local: set[int]) -> bool:
    pieces = name.split(".")
    return "experts" in pieces and int(pieces[pieces.index("experts") + 1]) not in local


def install_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make `import vllm…` find the fake; returns its table of loaders by format."""
    table: dict[str, Any] = dict.fromkeys(("auto", "hf", "pt", "safetensors"), VllmLoader)

    def register_model_loader(name: str) -> Callable[[Any], Any]:
        return lambda loader: table.setdefault(name, loader)

    base = "vllm.model_executor.model_loader"
    _install(
        monkeypatch,
        {
            "vllm": {},
            "vllm.model_executor": {},
            base: {
                "DefaultModelLoader": VllmLoader,
                "_LOAD_FORMAT_TO_MODEL_LOADER": table,
                "register_model_loader": register_model_loader,
            },
            f"{base}.weight_utils": {"filter_safetensors_files_by_weight_name": _without_named},
            f"{base}.ep_weight_filter": {"should_skip_weight": _skip_expert},
            "vllm.distributed": {},
        },
    )
    return table


class LoadFormat(str, enum.Enum):  # noqa: UP042 as SGLang has it
    """SGLang's closed list."""

    AUTO = "auto"
    PRIVATE = "private"


class HookType(enum.Enum):
    """SGLang's kinds of hooks."""

    AFTER = "after"
    AROUND = "around"


class HookRegistry:
    """SGLang's hooks, applied to `targets` instead of modules."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[tuple[HookType, Any, None]]] = {}

    def register(self, target: str, hook: Any, kind: HookType) -> None:
        self._hooks.setdefault(target, []).append((kind, hook, None))

    def apply_hooks(self) -> None:
        """Nothing: the fake looks its hooks up when it calls."""

    def call(self, target: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what stands at `target`, with its hooks."""
        hooks = self._hooks.get(target, [])
        around = [hook for kind, hook, _ in hooks if kind is HookType.AROUND]
        result = around[0](original, *args, **kwargs) if around else original(*args, **kwargs)
        for kind, hook, _ in hooks:
            if kind is HookType.AFTER:
                changed = hook(result, *args, **kwargs)
                result = result if changed is None else changed
        return result


class SglangLoader:
    """SGLang's DefaultModelLoader, its functions called by way of the hooks."""

    hooks: HookRegistry

    def __init__(self, load_config: LoadConfig) -> None:
        if load_config.model_loader_extra_config:
            raise ValueError("Unexpected extra config keys")
        self.load_config = load_config

    def _prepare_weights(self, folder: str) -> tuple[str, list[str], bool]:
        def prepare(loader: SglangLoader, folder: str) -> tuple[str, list[str], bool]:
            assert loader.load_config.load_format is LoadFormat.AUTO
            return folder, [str(path) for path in sorted(Path(folder).iterdir())
                            if path.suffix == ".safetensors"], True  # fmt: skip

        target = "sglang.srt.model_loader.loader.DefaultModelLoader._prepare_weights"
        prepared: tuple[str, list[str], bool] = self.hooks.call(target, prepare, self, folder)
        return prepared

    def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, Any]]:
        _, files, _ = self._prepare_weights(source.model_or_path)
        name = "buffered_multi_thread_safetensors_weights_iterator"
        target = f"sglang.srt.model_loader.weight_utils.{name}"
        tensors = self.hooks.call(target, _sglang_tensors, files, max_workers=8)
        return ((source.prefix + name, tensor) for name, tensor in tensors)

    def load(self, source: Source) -> dict[str, Any]:
        """Load as the engine does: the post-processing reads the tensors."""
        target = "sglang.srt.model_loader.loader.DefaultModelLoader.load_weights_and_postprocess"
        tensors = self._get_weights_iterator(source)
        loaded: dict[str, Any] = self.hooks.call(target, dict, tensors)
        return loaded


def _sglang_tensors(files: list[str], max_workers: int) -> Iterator[tuple[str, Any]]:
    assert max_workers == 8
    yield from vllm_tensors(files)


def install_sglang(monkeypatch: pytest.MonkeyPatch) -> HookRegistry:
    """Make `import sglang…` find the fake; returns its hooks."""
    hooks = HookRegistry()
    monkeypatch.setattr(SglangLoader, "hooks", hooks, raising=False)
    _install(
        monkeypatch,
        {
            "sglang": {},
            "sglang.srt": {},
            "sglang.srt.configs": {},
            "sglang.srt.configs.load_config": {"LoadFormat": LoadFormat},
            "sglang.srt.model_loader": {},
            "sglang.srt.model_loader.loader": {"DefaultModelLoader": SglangLoader},
            "sglang.srt.plugins": {},
            "sglang.srt.plugins.hook_registry": {"HookRegistry": hooks, "HookType": HookType},
        },
    )
    return hooks


def _install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, Any]]) -> None:
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
