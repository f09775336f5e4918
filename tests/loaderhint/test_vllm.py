"""The plugin of vLLM against its hook points; the engine itself is in tests/engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from loaderhint import vllm
from tests.conftest import ExpectedWarnings
from tests.harness.hint_server import HintServer
from tests.loaderhint.fake_engines import LoadConfig, Source, VllmLoader, install_vllm
from tests.loaderhint.weights import assert_same, expected, save_model


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The engine's loaders by format, once the plugin is registered."""
    table = install_vllm(monkeypatch)
    vllm.register()
    return table


def test_registering_again_changes_nothing(loaders: dict[str, Any]) -> None:
    """The engine may call register several times in one process."""
    before = dict(loaders)
    vllm.register()
    assert loaders == before
    assert "fusefs" in loaders
    assert loaders["pt"] is VllmLoader


def test_a_loader_of_another_plugin_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaced a format before us keeps it."""
    table = install_vllm(monkeypatch)
    table["auto"] = other = type("Other", (VllmLoader,), {})
    vllm.register()
    assert table["auto"] is other
    assert table["hf"] is not VllmLoader


def test_an_unknown_vllm_is_not_stopped(
    monkeypatch: pytest.MonkeyPatch, expect_warning: ExpectedWarnings
) -> None:
    """Registering raises nothing, whatever it finds; the log says that hints are missing."""
    install_vllm(monkeypatch)
    monkeypatch.setitem(sys.modules, "vllm.model_executor", None)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader", None)
    expect_warning("this vLLM loads without loaderhint")
    vllm.register()


def test_the_default_format_hints_in_natural_order(
    loaders: dict[str, Any], folder: Path, server: HintServer
) -> None:
    """Files come as ever; the daemon is told of them once, in the order they will be read."""
    paths = save_model(folder, shards=11)
    loader = loaders["auto"](LoadConfig())
    found = dict(loader._get_weights_iterator(Source(str(folder), prefix="x.")))
    assert_same(found, {f"x.{name}": tensor for name, tensor in expected(*paths).items()})
    (plan,) = server.wait_for("plan")
    assert [one["inode"] for one in plan["files"]] == [path.stat().st_ino for path in paths]
    assert "group" not in plan


def test_a_download_leaves_no_hint(
    loaders: dict[str, Any], folder: Path, server: HintServer
) -> None:
    """`download_model` lists files and reads none: its hint ends with it."""
    save_model(folder)
    loaders["auto"](LoadConfig()).download_model(str(folder))
    assert len(server.wait_for("plan")) == 1


def test_the_format_streams_every_tensor(
    loaders: dict[str, Any], folder: Path, server: HintServer
) -> None:
    """`fusefs` yields all tensors under the prefix, by one plan of its own."""
    paths = save_model(folder)
    config = LoadConfig("fusefs", {"concurrency": 2, "memory_limit": 1 << 20})
    loader = loaders["fusefs"](config)
    found = dict(loader._get_weights_iterator(Source(str(folder), prefix="x.")))
    assert_same(found, {f"x.{name}": tensor for name, tensor in expected(*paths).items()})
    assert len(server.wait_for("plan")) == 1
    assert loader.counter_before_loading_weights > 0
    assert config.load_format == "fusefs"


def test_the_filters_of_the_engine_hold(loaders: dict[str, Any], tmp_path: Path) -> None:
    """Experts of other ranks and files of unused weights are not read."""
    for number in range(3):
        tensors = {
            f"layers.experts.{number}.weight": torch.ones(2),
            f"norm.{number}": torch.ones(1),
        }
        safetensors.torch.save_file(tensors, tmp_path / f"{number}.safetensors")
    safetensors.torch.save_file({"unused": torch.ones(4)}, tmp_path / "9.safetensors")
    loader = loaders["fusefs"](LoadConfig("fusefs"))
    loader.local_expert_ids = {1}
    source = Source(str(tmp_path), is_unused_weight=lambda name: name == "unused")
    found = dict(loader._get_weights_iterator(source))
    assert sorted(found) == ["layers.experts.1.weight", "norm.0", "norm.1", "norm.2"]


def test_unknown_extra_config_is_refused(loaders: dict[str, Any]) -> None:
    """A key that nobody knows is named before anything is loaded."""
    with pytest.raises(ValueError, match="threads; there are concurrency"):
        loaders["fusefs"](LoadConfig("fusefs", {"threads": 8}))


def test_torchao_keeps_its_own_way(loaders: dict[str, Any], tmp_path: Path) -> None:
    """Checkpoints that vLLM rebuilds from their files are left to it."""
    paths = save_model(tmp_path)
    loader = loaders["fusefs"](LoadConfig("fusefs", safetensors_load_strategy="torchao"))
    assert_same(dict(loader._get_weights_iterator(Source(str(tmp_path)))), expected(*paths))
    assert loader.counter_before_loading_weights == 0.0
