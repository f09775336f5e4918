"""The plugin of SGLang against its hook points; the engine itself is in tests/engines."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from loaderhint import channel, sglang
from tests.conftest import ExpectedWarnings
from tests.harness.hint_server import HintServer
from tests.loaderhint.fake_engines import (
    HookRegistry,
    LoadConfig,
    LoadFormat,
    SglangLoader,
    Source,
    install_sglang,
)
from tests.loaderhint.weights import assert_same, expected, save_model


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> HookRegistry:
    """SGLang's hooks; what the plugin adds to the modules goes with the test."""
    for name in ("sglang.private", "sglang.private.private_model_loader"):
        # Set and taken away, so that monkeypatch takes away what the plugin sets.
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    return install_sglang(monkeypatch)


@pytest.fixture
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a mount of fusefs."""
    monkeypatch.setattr(channel, "MOUNTINFO", os.devnull)


def private_loader() -> Any:
    """As SGLang looks it up."""
    return importlib.import_module("sglang.private.private_model_loader").PrivateModelLoader


def test_registering_again_changes_nothing(hooks: HookRegistry, server: HintServer) -> None:
    """Each hook is there once, however often register is called."""
    del server
    sglang.register()
    sglang.register()
    assert [len(of_target) for of_target in hooks._hooks.values()] == [1, 1, 1, 1]


def test_without_a_mount_nothing_is_hooked(hooks: HookRegistry, no_mounts: None) -> None:
    """A process that sees no mount keeps its loader as it is."""
    del no_mounts
    sglang.register()
    assert hooks._hooks == {}


def test_the_default_format_hints_while_it_loads(
    hooks: HookRegistry, folder: Path, server: HintServer
) -> None:
    """The same tensors as ever, and one plan of the files in this rank's order."""
    del hooks
    sglang.register()
    paths = save_model(folder, shards=3)
    found = SglangLoader(LoadConfig(LoadFormat.AUTO)).load(Source(str(folder), prefix="x."))
    assert_same(found, {f"x.{name}": tensor for name, tensor in expected(*paths).items()})
    (plan,) = server.wait_for("plan")
    assert [one["inode"] for one in plan["files"]] == [path.stat().st_ino for path in paths]


def test_private_streams_every_tensor(
    hooks: HookRegistry, folder: Path, server: HintServer
) -> None:
    """`private` yields all tensors under the prefix, by one plan of its own."""
    del hooks
    sglang.register()
    paths = save_model(folder)
    config = LoadConfig(LoadFormat.PRIVATE, {"concurrency": 2})
    found = private_loader()(config).load(Source(str(folder), prefix="x."))
    assert_same(found, {f"x.{name}": tensor for name, tensor in expected(*paths).items()})
    assert len(server.wait_for("plan")) == 1
    assert config.load_format is LoadFormat.PRIVATE


def test_private_works_off_a_mount(hooks: HookRegistry, no_mounts: None, tmp_path: Path) -> None:
    """The format is there without a mount, and then hooks what it needs itself."""
    del no_mounts
    sglang.register()
    assert hooks._hooks == {}
    paths = save_model(tmp_path)
    found = private_loader()(LoadConfig(LoadFormat.PRIVATE)).load(Source(str(tmp_path)))
    assert_same(found, expected(*paths))


def test_unknown_extra_config_is_refused(hooks: HookRegistry) -> None:
    """A key that nobody knows is named before anything is loaded."""
    del hooks
    sglang.register()
    with pytest.raises(ValueError, match="num_threads; there are concurrency"):
        private_loader()(LoadConfig(LoadFormat.PRIVATE, {"num_threads": 8}))


def test_somebody_elses_private_loader_stays(
    hooks: HookRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format has one owner: who is there first."""
    del hooks
    monkeypatch.setitem(sys.modules, "sglang.private", other := type(sys)("sglang.private"))
    sglang.register()
    assert sys.modules["sglang.private"] is other
    assert "sglang.private.private_model_loader" not in sys.modules


def test_an_unknown_sglang_is_not_stopped(
    hooks: HookRegistry,
    server: HintServer,
    monkeypatch: pytest.MonkeyPatch,
    expect_warning: ExpectedWarnings,
) -> None:
    """Registering raises nothing, whatever it finds."""
    del hooks, server
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", None)
    expect_warning("this SGLang loads without loaderhint")
    sglang.register()
