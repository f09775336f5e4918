"""The one step of a build that pyproject.toml cannot say: protocols become a descriptor set.

`fusefs/kubernetes/*.proto` are compiled to `fusefs/kubernetes/protocols.binpb`, which every version
of the protobuf package reads; generated Python would be tied to one. Run by pip for wheels and
editable installs, and by `make protocols`.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDER = Path("fusefs/kubernetes")
COMPILED = FOLDER / "protocols.binpb"


def compile_protocols(compiled: Path = COMPILED) -> None:
    """Compile what lies in the folder; the current directory is the repository's."""
    import grpc_tools
    from grpc_tools import protoc

    own = str(Path(grpc_tools.__file__).parent / "_proto")  # google/protobuf/wrappers.proto
    sources = [str(path) for path in sorted(FOLDER.glob("*.proto"))]
    options = ["-I.", f"-I{own}", "--include_imports", f"--descriptor_set_out={compiled}"]
    if protoc.main(["protoc", *options, *sources]) != 0:
        raise SystemExit("the protocols of fusefs/kubernetes do not compile")


class BuildPy(build_py):
    """Also compiles the protocols."""

    def run(self) -> None:
        """Compile first: what was made is package data."""
        compile_protocols()
        super().run()


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})
