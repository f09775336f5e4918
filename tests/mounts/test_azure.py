"""A model in Azure Blob, through a real mount."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.store.source import open_writer, parse_source
from tests.harness.azurite import ACCOUNT, Azurite
from tests.harness.mounted import MountFailed, open_mount


@pytest.fixture
def model_source(azurite_environment: Azurite, container: str, model_directory: Path) -> str:
    """The SOURCE of a small sharded model in a folder of a container."""
    source = f"az://{ACCOUNT}/{container}/llama"
    parsed = parse_source(source)
    writer = open_writer(parsed, Config())
    for path in sorted(model_directory.iterdir()):
        data = path.read_bytes()
        upload = writer.begin(parsed.prefix + path.name, len(data))
        for index, start in enumerate(range(0, len(data), upload.part_bytes)):
            upload.put_part(index, memoryview(data)[start : start + upload.part_bytes])
        upload.commit()
    writer.close()
    return source


def test_a_model_in_azure(model_source: str, model_directory: Path, container: str) -> None:
    """Every file is there, byte for byte; the account may be left to the environment."""
    for source in (model_source, f"az://{container}/llama"):
        with open_mount(source) as mounted:
            names = sorted(path.name for path in model_directory.iterdir())
            assert sorted(path.name for path in mounted.path.iterdir()) == names
            for name in names:
                assert (mounted.path / name).read_bytes() == (model_directory / name).read_bytes()
            assert mounted.run_cli("status", str(mounted.path)).stdout.find(model_source) >= 0


def test_what_cannot_be_mounted_is_told(azurite: Azurite, model_source: str) -> None:
    """A missing prefix, a wrong key and an expired SAS fail the mount with one plain sentence."""
    with pytest.raises(MountFailed) as failed, open_mount(f"{model_source}-not"):
        pass
    assert "holds no object below 'llama-not/'" in failed.value.stderr
    wrong = base64.b64encode(b"hunter2").decode()
    string = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
    container = model_source.split("/")[3]
    for environment, said in (
        ({"AZURE_STORAGE_CONNECTION_STRING": string.replace(azurite.key, wrong)}, "is refused"),
        (
            {
                "AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={azurite.endpoint}",
                "AZURE_STORAGE_SAS_TOKEN": azurite.sas(container, "rl", hours=-1),
            },
            "the SAS has expired",
        ),
    ):
        with (
            pytest.raises(MountFailed) as failed,
            open_mount(model_source, environment=environment),
        ):
            pass
        assert said in failed.value.stderr
        assert "Traceback" not in failed.value.stderr
        assert "sig=" not in failed.value.stderr
        assert wrong not in failed.value.stderr
