"""Which source of a setting wins, and that none holds a key nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.cli.resolve import resolve_config, why_to_distrust
from fusefs.config import SETTINGS, Config, Setting
from fusefs.errors import ConfigError
from tests.cli.commandline import run_fusefs

NOWHERE = Path("/nonexistent/fusefs.toml")


def _resolve(
    tmp_path: Path,
    *overrides: tuple[str, str, str],
    toml: str | None = None,
    environ: dict[str, str] | None = None,
) -> Config:
    file = None
    if toml is not None:
        file = tmp_path / "fusefs.toml"
        file.write_text(toml, "utf-8")
    return resolve_config(
        file=file, environ=environ or {}, overrides=overrides, default_file=NOWHERE
    )


def test_without_any_source_all_is_default(tmp_path: Path) -> None:
    """No configuration is needed."""
    assert _resolve(tmp_path, environ={"HOME": "/root", "FUSE": "1"}) == Config()


@given(sources=st.sets(st.sampled_from(["toml", "environment", "option"])))
def test_the_stronger_source_wins(
    tmp_path_factory: pytest.TempPathFactory, sources: set[str]
) -> None:
    """Default < TOML < environment < command line, whichever of them say something."""
    config = _resolve(
        tmp_path_factory.mktemp("resolve"),
        *([("--set", "engine.connections", "3")] if "option" in sources else []),
        toml="engine.connections = 1" if "toml" in sources else None,
        environ={"FUSEFS_ENGINE_CONNECTIONS": "2"} if "environment" in sources else {},
    )
    strongest: list[int | None] = [
        value
        for value, source in ((3, "option"), (2, "environment"), (1, "toml"))
        if source in sources
    ]
    assert config.engine.connections == (strongest or [None])[0]


def test_the_last_word_on_the_command_line_counts(tmp_path: Path) -> None:
    """Of several flags for one setting the last one is taken, `memory` and its long name alike."""
    config = _resolve(
        tmp_path,
        ("--set", "engine.memory", "1G"),
        ("--memory", "memory", "2G"),
        ("-o", "memory", "3G"),
    )
    assert config.engine.memory == 3 << 30


def test_a_source_can_go_back_to_automatic(tmp_path: Path) -> None:
    """A stronger source can undo a weaker one without knowing a number."""
    config = _resolve(tmp_path, ("--memory", "memory", "automatic"), toml="engine.memory = '1G'")
    assert config.engine.memory is None


def test_the_machines_file_is_read_unless_another_is_named(tmp_path: Path) -> None:
    """/etc/fusefs.toml counts if it exists; --config takes its place."""
    machine, own = tmp_path / "machine.toml", tmp_path / "own.toml"
    machine.write_text("[tree]\nttl_s = 1\nnegative_ttl_s = 2\n")
    own.write_text("[tree]\nttl_s = 5\n")
    by_machine = resolve_config(file=None, environ={}, default_file=machine).tree
    by_own = resolve_config(file=own, environ={}, default_file=machine).tree
    assert (by_machine.ttl_s, by_machine.negative_ttl_s) == (1.0, 2.0)
    assert (by_own.ttl_s, by_own.negative_ttl_s) == (5.0, 10.0)


def test_toml_values_keep_their_meaning(tmp_path: Path) -> None:
    """TOML's own types mean what they say; sizes and octal modes may be texts too."""
    config = _resolve(
        tmp_path,
        toml="""
        [mount]
        allow_other = true
        umask = 0o077
        uid = 1000
        [engine]
        memory = 1073741824
        block_size = "2M"
        [tree]
        ttl_s = 0.5
        negative_ttl_s = 3
        """,
    )
    assert config.mount.allow_other is True
    assert config.mount.umask == 0o077
    assert config.mount.uid == 1000
    assert config.engine.memory == 1 << 30
    assert config.engine.block_size == 2 << 20
    assert (config.tree.ttl_s, config.tree.negative_ttl_s) == (0.5, 3.0)
    assert _resolve(tmp_path, toml='mount.umask = "077"').mount.umask == 0o077


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_every_setting_can_come_from_the_environment(tmp_path: Path, setting: Setting) -> None:
    """FUSEFS_<COMPONENT>_<KEY> sets every setting there is; an empty variable sets none."""
    weaker = _other_value(setting)
    toml = f"{setting.name} = '{weaker}'"
    by_file = _resolve(tmp_path, toml=toml)
    assert by_file != Config()
    assert _resolve(tmp_path, environ={setting.variable: weaker}) == by_file
    assert _resolve(tmp_path, toml=toml, environ={setting.variable: ""}) == by_file
    undone = _resolve(tmp_path, toml=toml, environ={setting.variable: setting.default_text})
    assert undone == Config()


def _other_value(setting: Setting) -> str:
    """A value the setting accepts that is not its default."""
    for text in ("true", "false", "64M", "4M", "37", "/37", "http://37", "debug", "check", "x"):
        try:
            if setting.parse(text, "test") != setting.default:
                return text
        except ConfigError:
            continue
    raise AssertionError(setting.name)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[engine]\nmemroy = 1", "unknown setting 'engine.memroy'; did you mean engine.memory?"),
        ("[engin]\nmemory = 1", "unknown table [engin]; did you mean engine?"),
        ("memory = 1", "'memory' stands outside of any table"),
        ("[engine]\nmemory = ", "is not valid TOML"),
        ("[engine]\nmemory = [1]", "engine.memory must be a size"),
        ("[engine]\nconnections = true", "engine.connections must be a whole number"),
        ("[engine]\nconnections = 3.5", "engine.connections must be a whole number"),
        ("[engine.memory]\nlimit = 1", "engine.memory must be a size"),
        ("[tree]\nttl_s = nan", "tree.ttl_s must be a number of seconds"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, toml: str, said: str) -> None:
    """What is wrong in a TOML file is one sentence with the file, the key and the remedy."""
    with pytest.raises(ConfigError) as caught:
        _resolve(tmp_path, toml=toml)
    assert said in str(caught.value)
    assert str(tmp_path / "fusefs.toml") in str(caught.value)


def test_a_named_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    """--config with a missing, unreadable or binary file is an error with the file's name."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file, said in ((NOWHERE, "No such file"), (tmp_path, "directory"), (binary, "not UTF-8")):
        with pytest.raises(ConfigError, match=said) as caught:
            resolve_config(file=file, environ={}, default_file=NOWHERE)
        assert str(file) in str(caught.value)


def test_an_unknown_variable_is_refused_by_name_without_its_value(tmp_path: Path) -> None:
    """A FUSEFS_ variable nobody knows is an error; what it holds is not repeated."""
    with pytest.raises(ConfigError) as caught:
        _resolve(tmp_path, environ={"FUSEFS_S3_SECRET_KEY": "hunter2"})
    assert "FUSEFS_S3_SECRET_KEY" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_links_of_kubernetes_to_a_service_of_our_name_are_no_settings(tmp_path: Path) -> None:
    """A Service called fusefs sets FUSEFS_ variables in every pod beside it; they mean nothing."""
    links = {
        "FUSEFS_SERVICE_HOST": "10.0.0.1",
        "FUSEFS_SERVICE_PORT": "80",
        "FUSEFS_NODE_SERVICE_PORT_METRICS": "80",
        "FUSEFS_PORT": "tcp://10.0.0.1:80",
        "FUSEFS_PORT_80_TCP": "tcp://10.0.0.1:80",
        "FUSEFS_NODE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert _resolve(tmp_path, environ=links) == _resolve(tmp_path)
    with pytest.raises(ConfigError, match="FUSEFS_S3_PORTS"):
        _resolve(tmp_path, environ={"FUSEFS_S3_PORTS": "1"})


def test_a_wrong_value_is_an_error_even_where_a_stronger_source_hides_it(tmp_path: Path) -> None:
    """A mistake in the environment is told now, not on the day the flag is dropped."""
    with pytest.raises(ConfigError, match="FUSEFS_ENGINE_MEMORY"):
        _resolve(tmp_path, ("--memory", "memory", "1G"), environ={"FUSEFS_ENGINE_MEMORY": "lots"})


def test_an_unknown_flag_setting_is_refused_by_name(tmp_path: Path) -> None:
    """--set with a key nobody knows is an error that names the nearest."""
    with pytest.raises(ConfigError, match=r"--set: unknown setting 's3.regoin'.*s3.region"):
        _resolve(tmp_path, ("--set", "s3.regoin", "x"))


def test_ranges_are_whole_blocks(tmp_path: Path) -> None:
    """A range that is no multiple of the block is refused, whichever of the two was set."""
    with pytest.raises(ConfigError, match=r"engine\.range_size must be a multiple"):
        _resolve(
            tmp_path, ("--set", "engine.range_size", "3M"), ("--set", "engine.block_size", "2M")
        )


def test_a_file_that_everybody_may_write_is_told(tmp_path: Path) -> None:
    """Settings that anybody may change are warned of, since they say where credentials go."""
    file = tmp_path / "fusefs.toml"
    assert why_to_distrust(file) is None
    file.write_text("")
    for mode, told in ((0o600, False), (0o664, False), (0o666, True)):
        file.chmod(mode)
        assert (why_to_distrust(file) is not None) == told
    file.chmod(0o606)
    ended = run_fusefs("ls", f"file://{tmp_path}", "--config", file)
    assert ended.status == 0
    assert f"chmod o-w {file}" in ended.sentence
