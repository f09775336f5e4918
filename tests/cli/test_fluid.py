"""The entrypoint of a Fluid ThinRuntime: Fluid's JSON becomes a mount, and no secret leaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fusefs.cli.arguments import config_of
from fusefs.cli.fluid import read_fluid
from fusefs.errors import ConfigError
from fusefs.mount import kernel
from tests.cli.commandline import ROOT, run_fusefs
from tests.harness.mounted import cli_command
from tests.harness.weed import Weed


def _file(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


def _content(source: str, target: Path, **options: Any) -> dict[str, Any]:
    """What Fluid writes for a Dataset of one mount."""
    mount = {"mountPoint": source, "name": "llama", "options": options, "readOnly": True}
    return {"mounts": [mount], "targetPath": str(target), "accessModes": ["ReadOnlyMany"]}


def test_fluid_mounts_a_bucket_with_its_secrets(weed: Weed, bucket: str, tmp_path: Path) -> None:
    """The container mounts on targetPath with options and encryptOptions, and ends on SIGTERM."""
    weed.client().put_object(Bucket=bucket, Key="llama/config.json", Body=b"{}")
    options = {}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        secret = tmp_path / name
        secret.write_text(weed.environment[name] + "\n")
        options[name] = str(secret)
    options["s3.endpoint_url"] = weed.environment["AWS_ENDPOINT_URL"]
    options["memory"] = "32M"
    target = tmp_path / "runtime-mnt" / "thin" / "default" / "llama" / "thin-fuse"
    file = _file(tmp_path, _content(f"s3://{bucket}/llama", target, **options))
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = subprocess.Popen(
        [*cli_command(), "fluid-entrypoint", str(file)],
        cwd=ROOT,
        env={**bare, "AWS_DEFAULT_REGION": "us-east-1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == f"s3://{bucket}/llama/ is mounted on {target}\n"
            assert (target / "config.json").read_bytes() == b"{}"
        finally:
            command.send_signal(signal.SIGTERM)
            command.wait(30)
    assert command.returncode == 0
    assert kernel.find_mount(str(target)) is None


def test_options_become_settings_and_other_users_may_read(tmp_path: Path) -> None:
    """Every option is a setting or an option of mount(8); commas in a value stay in it."""
    content = _content("s3://b/k", tmp_path, **{"umask": "077", "s3.profile": "a,b=c\\d"})
    arguments, variables = read_fluid(_file(tmp_path, content))
    config = config_of(arguments)
    assert (arguments.source, arguments.mountpoint) == ("s3://b/k", str(tmp_path))
    assert config.mount.allow_other
    assert config.mount.umask == 0o077
    assert config.s3.profile == "a,b=c\\d"
    assert variables == {}


def test_credentials_are_read_from_the_files_fluid_names(tmp_path: Path) -> None:
    """A secret's file is read, a credential file's name is passed on."""
    (tmp_path / "sas").write_text("sv=1&sig=x\n")
    content = _content(
        "az://c", tmp_path,
        AZURE_STORAGE_SAS_TOKEN=str(tmp_path / "sas"), GOOGLE_APPLICATION_CREDENTIALS="/k.json",
    )  # fmt: skip
    _, variables = read_fluid(_file(tmp_path, content))
    assert variables == {
        "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x",
        "GOOGLE_APPLICATION_CREDENTIALS": "/k.json",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ([], "is not a JSON object"),
        ({}, "has no list of mounts"),
        ({"mounts": [1]}, "has no list of mounts"),
        ({"mounts": [], "targetPath": "/x"}, "has 0 mounts"),
        ({"mounts": [{}, {}], "targetPath": "/x"}, "a Dataset and a ThinRuntime of its own"),
        ({"mounts": [{}], "targetPath": "/x"}, "has no mountPoint"),
        ({"mounts": [{"mountPoint": "s3://b"}]}, "has no targetPath"),
        ({"mounts": [{"mountPoint": "s3://b", "options": {"a": 1}}]}, "no object of texts"),
        ({"mounts": [{"mountPoint": "s3://b", "options": []}], "targetPath": ""}, "no targetPath"),
    ],
)  # fmt: skip
def test_what_fluid_cannot_have_meant_is_one_sentence(
    content: Any, said: str, tmp_path: Path
) -> None:
    """A file that is wrong is named, with what is wrong, and the exit status is 2."""
    file = _file(tmp_path, content)
    ended = run_fusefs("fluid-entrypoint", file)
    assert ended.status == 2
    assert str(file) in ended.sentence
    assert said in ended.sentence


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    """A key that is neither setting nor credential is refused by name."""
    file = _file(tmp_path, _content("s3://b", tmp_path / "mnt", access_key="x"))
    ended = run_fusefs("fluid-entrypoint", file)
    assert ended.status == 2
    assert "access_key" in ended.sentence


def test_a_secret_among_the_options_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """A secret has to come as a file; what was said instead shows nowhere."""
    for value in ("hunter2", "/nowhere/hunter2"):
        content = _content("s3://b", tmp_path, AWS_SECRET_ACCESS_KEY=value)
        with pytest.raises(ConfigError, match="encryptOptions") as caught:
            read_fluid(_file(tmp_path, content))
        assert "hunter2" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Without the file there is a sentence that names it."""
    ended = run_fusefs("fluid-entrypoint", tmp_path / "config.json")
    assert ended.status == 2
    assert f"cannot read {tmp_path / 'config.json'}" in ended.sentence
