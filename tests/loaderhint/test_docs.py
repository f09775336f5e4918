"""docs/loaderhint.md says what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import loaderhint
from loaderhint import cuda, delivery, distributed, loading, streamer, torch
from loaderhint.wishes import Progress


@pytest.fixture
def page(repository: Path) -> str:
    """The page."""
    return (repository / "docs" / "loaderhint.md").read_text("utf-8")


def test_every_parameter_is_named(page: str) -> None:
    """The parameters of what is public, and the fields of a progress, are on the page."""
    for function in (loaderhint.hint, torch.iterate_files):
        for parameter in inspect.signature(function).parameters:
            assert f"`{parameter}`" in page, f"{function.__name__}: {parameter}"
    assert f"`hint{signature(loaderhint.hint)}`" in page
    for name in ("ready_bytes", "total_bytes", "bytes_per_s"):
        assert name in Progress.__dataclass_fields__
        assert f"`{name}`" in page
    for name in loaderhint.__all__:
        assert re.search(rf"\b{name}\b", page), name


def test_options_are_the_parameters() -> None:
    """What `load_files` passes on is what `iterate_files` takes."""
    parameters = list(inspect.signature(torch.iterate_files).parameters)
    assert list(torch.Options.__annotations__) == parameters[2:]


def signature(function: object) -> str:
    """Names and defaults, without types."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    said = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and "*" not in said:
            said.append("*")
        default = one.default
        text = f'"{default}"' if isinstance(default, str) else str(default)
        said.append(one.name if default is one.empty else f"{one.name}={text}")
    return f"({', '.join(said)})"


def test_numbers_are_those_of_the_code(page: str) -> None:
    """Limits that the page states are the constants."""
    assert loading.READY_BYTES_MAX == 2 << 30 and "not yet taken: 2 GiB" in page
    assert delivery.CHUNK_BYTES == 16 << 20 and "16 MiB at a time" in page
    assert delivery.STALL_S == 10 and "silent for ten seconds" in page
    assert delivery.THREADS == 8 and "where files are read: 8" in page
    assert (cuda.BUFFERS, cuda.BUFFER_BYTES) == (8, 16 << 20)
    assert "eight pinned buffers of 16 MiB" in page
    assert distributed.BATCH_BYTES == 64 << 20 and "64 MiB, its largest tensor" in page
    assert streamer.PREFETCH_BYTES_MAX == 4 << 30 and "At most 4 GiB wait" in page


def test_the_examples_are_python(page: str) -> None:
    """Every example compiles, and what it imports of ours is there."""
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        compile(example, "docs/loaderhint.md", "exec")
        for line in example.splitlines():
            if line.startswith("from loaderhint"):
                exec(line, {})
