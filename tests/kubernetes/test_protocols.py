"""The compiled protocols are those of the sources, and a wheel holds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fusefs.kubernetes.wire import COMPILED, csi


def test_the_compiled_protocols_are_of_these_sources(repository: Path, tmp_path: Path) -> None:
    """What setup.py makes of the .proto files is what lies beside them: else `make protocols`."""
    fresh = tmp_path / "protocols.binpb"
    call = f"import pathlib, setup; setup.compile_protocols(pathlib.Path({str(fresh)!r}))"
    subprocess.run([sys.executable, "-c", call], cwd=repository, check=True, timeout=60)
    assert fresh.read_bytes() == COMPILED.read_bytes()


def test_field_numbers_are_the_specifications() -> None:
    """The numbers that the wire knows, of the message that carries most (csi.proto, v1)."""
    fields = csi("NodePublishVolumeRequest").DESCRIPTOR.fields_by_name
    assert {name: field.number for name, field in fields.items()} == {
        "volume_id": 1,
        "publish_context": 2,
        "staging_target_path": 3,
        "target_path": 4,
        "volume_capability": 5,
        "readonly": 6,
        "secrets": 7,
        "volume_context": 8,
    }
