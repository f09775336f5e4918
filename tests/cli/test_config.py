"""The table of settings: how values are read, shown, checked and documented."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.config import (
    COMPONENTS,
    SETTINGS,
    Config,
    EngineConfig,
    MountConfig,
    Setting,
    config_from_json_dict,
)
from fusefs.errors import ConfigError
from fusefs.values import parse_size, show_size
from tests.cli.configuration_page import PAGE, configuration_page

ROWS = list(SETTINGS.values())


def _name(row: Setting) -> str:
    return row.name


@given(st.integers(0, 10**18 - 1))
def test_a_size_survives_being_shown(size: int) -> None:
    """Every size reads back as itself."""
    assert parse_size(show_size(size)) == size


@given(st.integers(0, 10**6), st.sampled_from("kKmMgGtT"), st.sampled_from(["", "b", "B", "iB"]))
def test_units_of_sizes_are_powers_of_1024(number: int, unit: str, suffix: str) -> None:
    """A unit means the same in either case, with or without iB."""
    power = " kmgt".index(unit.lower())
    assert parse_size(f"{number}{unit}{suffix}") == number * 1024**power


@given(st.text(max_size=12))
def test_any_other_text_is_no_size(text: str) -> None:
    """Text is a size or a ValueError, and a size has digits first and only ASCII."""
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert size >= 0
    assert text.isascii()
    assert text[0].isdigit()


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5G", "1 G", "1i", "1X", "1e3", "0x10", "٣", "1_0"]
)
def test_what_looks_like_a_size_but_is_none(text: str) -> None:
    """Signs, fractions, blanks, foreign digits and unknown units are refused."""
    with pytest.raises(ValueError, match=r"^.*$"):
        parse_size(text)


@pytest.mark.parametrize("row", ROWS, ids=_name)
def test_every_default_is_a_value_its_own_row_accepts(row: Setting) -> None:
    """A default, written as the page writes it, reads back as the default."""
    assert row.parse(row.default_text, "test") == row.default


@pytest.mark.parametrize("row", ROWS, ids=_name)
def test_every_setting_says_what_it_is_and_why(row: Setting) -> None:
    """Every row has a help text, a reason and a way to write it, fit for a table cell."""
    for text in (row.help, row.reason, row.kind.written):
        assert text.strip() == text != ""
        assert "|" not in text
        assert "\n" not in text


@pytest.mark.parametrize("row", [row for row in ROWS if row.default is not None], ids=_name)
def test_automatic_is_only_where_it_is_the_default(row: Setting) -> None:
    """A setting that has a value of its own does not take "automatic" for one."""
    with pytest.raises(ConfigError, match=row.name):
        row.parse("automatic", "test")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mount.allow_other", "maybe"),
        ("mount.uid", "-1"),
        ("mount.uid", "4294967295"),
        ("mount.umask", "8"),
        ("mount.umask", "1777"),
        ("mount.umask", "0o22"),
        ("engine.memory", "15M"),
        ("engine.memory", "2T"),
        ("engine.block_size", "3M"),
        ("engine.block_size", "32K"),
        ("engine.connections", "0"),
        ("engine.connections", "1e1"),
        ("engine.read_deadline_s", "nan"),
        ("engine.read_deadline_s", "inf"),
        ("engine.read_deadline_s", "0.5"),
        ("tree.ttl_s", "-1"),
        ("tree.ttl_s", ""),
        ("kernel.max_background", "65536"),
        ("s3.endpoint_url", "storage.example.com"),
        ("s3.endpoint_url", "ftp://storage.example.com"),
        ("s3.endpoint_url", "http://[::1"),
        ("s3.endpoint_url", "http://host:99999"),
        ("s3.endpoint_url", "https://host/?key=1"),
        ("s3.region", ""),
        ("s3.region", "a\nb"),
        ("log.level", "loud"),
        ("log.file", "relative.log"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, text: str) -> None:
    """A value out of its range or form is one sentence that names place, setting and form."""
    with pytest.raises(ConfigError) as caught:
        SETTINGS[name].parse(text, "--set")
    sentence = str(caught.value)
    assert sentence.startswith(f"--set: {name} must be {SETTINGS[name].kind.written}")
    assert "\n" not in sentence


@pytest.mark.parametrize("name", SETTINGS)
@given(text=st.text(max_size=20))
def test_any_text_is_a_value_or_a_configuration_error(name: str, text: str) -> None:
    """No text makes a parser fail in another way, and what it accepts it accepts again as shown."""
    row = SETTINGS[name]
    try:
        value = row.parse(text, "test")
    except ConfigError:
        return
    shown = "automatic" if value is None else row.kind.show(value)
    assert row.parse(shown, "test") == value


def test_a_password_in_the_endpoint_is_refused_and_not_repeated() -> None:
    """An endpoint with credentials is an error whose sentence does not hold them."""
    with pytest.raises(ConfigError) as caught:
        SETTINGS["s3.endpoint_url"].parse("https://user:hunter2@host", "FUSEFS_S3_ENDPOINT_URL")
    assert "hunter2" not in str(caught.value)


def test_a_configuration_crosses_to_another_process_unchanged() -> None:
    """What is written as JSON reads back equal, defaults and all."""
    config = Config(mount=MountConfig(allow_other=True, uid=7), engine=EngineConfig(memory=1 << 30))
    wire = json.dumps(config.to_json_dict())
    assert config_from_json_dict(json.loads(wire)) == config
    assert config_from_json_dict(json.loads(json.dumps(Config().to_json_dict()))) == Config()


def test_every_component_is_in_the_table() -> None:
    """A field of `Config` has its row in the components, in the same order."""
    made = {row.name: type(getattr(Config(), row.name)) for row in dataclasses.fields(Config)}
    assert list(made.items()) == list(COMPONENTS.items())


def test_variables_are_unambiguous() -> None:
    """No two settings share an environment variable."""
    assert len({row.variable for row in ROWS}) == len(ROWS)


def test_the_page_is_generated_from_the_table() -> None:
    """docs/configuration.md is what `python -m tests.cli.configuration_page` writes."""
    assert PAGE.read_text("utf-8") == configuration_page()
