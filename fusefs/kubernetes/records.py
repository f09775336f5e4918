"""What the plugin remembers of mounts and targets over its own restarts: small files in a tmpfs.

Each mount key has a folder, readable for root and the mounter alone: `record.json` says what is
served (no secret), the other files are what its daemon gets as credentials. Files appear by rename,
so that nobody reads half of one. Which mounts and binds exist is not written here: mountinfo says.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusefs.kubernetes.credentials import FOLDER_MARK, Credentials
from fusefs.kubernetes.places import Places

RECORD_FILE, ENVIRONMENT_FILE = "record.json", "environment.json"

VERSION = 1
"""Of these files. A plugin reads what older ones wrote."""


@dataclass(frozen=True, slots=True)
class Record:
    """One mount key: what is served, for whom, and as which device once it is mounted.

    `meeting` is the folder where its sidecar is met, or None if the mounter serves it.
    """

    key: str
    source: str
    config: dict[str, Any]
    subject: str
    fingerprint: str
    inherit: bool
    device: str | None = None
    meeting: str | None = None

    def serves(self, volume: dict[str, Any], credentials: Credentials) -> bool:
        """Whether a volume that asks for this, with these credentials, can share the mount."""
        return (
            self.meeting is None
            and self.is_of(volume, credentials.subject)
            and self.fingerprint == credentials.fingerprint
        )

    def is_of(self, volume: dict[str, Any], subject: str) -> bool:
        """Whether the mount is of that volume and subject, whatever became of its secret."""
        return (self.source, self.config) == (volume["source"], volume["config"]) and (
            self.subject == subject
        )


@dataclass(frozen=True, slots=True)
class Target:
    """One published target."""

    path: str
    volume_id: str
    key: str
    read_only: bool
    arguments: str
    """A hash of all that the publish said and that is no credential."""


class Records:
    """The files below the run folder.

    Stateless: the files are the state. Not thread-safe for one key; the plugin holds its lock.
    """

    def __init__(self, places: Places, mounter_uid: int) -> None:
        self._places = places
        self._uid = mounter_uid

    def prepare(self) -> None:
        """Make the folders. Raises OSError."""
        for folder, mode in ((self._places.run, 0o755), (self._places.keys, 0o711)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        self._places.targets.mkdir(mode=0o700, exist_ok=True)
        self._places.mounts.mkdir(parents=True, exist_ok=True)

    def write(self, record: Record, credentials: Credentials | None) -> None:
        """Keep a record, and give its daemon these credentials. Raises OSError."""
        folder = self._places.keys / record.key
        if not folder.exists():
            folder.mkdir(mode=0o750)
            # The mounter reads, but a broken mounter can put nothing in the place of our files.
            os.chown(folder, -1, self._uid)
        if credentials is not None:
            environment = dict(credentials.environment)
            for variable, name in credentials.file_variables.items():
                environment[variable] = str(folder / name)
            for name, content in credentials.files.items():
                _write(folder / name, content.replace(FOLDER_MARK, str(folder)), self._uid)
            _write(folder / ENVIRONMENT_FILE, json.dumps(environment), self._uid)
        _write(folder / RECORD_FILE, json.dumps({"v": VERSION, **asdict(record)}), 0, self._uid)

    def remove(self, key: str) -> None:
        """Forget a key, its credentials first of all."""
        shutil.rmtree(self._places.keys / key, ignore_errors=True)

    def all(self) -> Iterator[Record]:
        """Every mount key that is known."""
        for file in sorted(self._places.keys.glob(f"*/{RECORD_FILE}")):
            yield read_record(file.parent)

    def write_target(self, target: Target) -> None:
        """Keep what is published at a target."""
        _write(self._places.target_file(target.path), json.dumps(asdict(target)), 0)

    def target(self, path: str) -> Target | None:
        """What was published at this path, if anything."""
        try:
            return Target(**json.loads(self._places.target_file(path).read_text()))
        except FileNotFoundError:
            return None

    def remove_target(self, path: str) -> None:
        """Forget a target."""
        self._places.target_file(path).unlink(missing_ok=True)

    def targets(self) -> list[Target]:
        """Every target that is known."""
        found = []
        for file in sorted(self._places.targets.glob("*.json")):
            found.append(Target(**json.loads(file.read_text())))
        return found


def new_key() -> str:
    """A name for a mount; says nothing of what it shows."""
    return secrets.token_hex(8)


def read_record(folder: Path) -> Record:
    """The record in a key's folder. Raises OSError."""
    values = json.loads((folder / RECORD_FILE).read_text())
    del values["v"]
    return Record(**values)


def read_environment(folder: Path) -> dict[str, str]:
    """The variables for a key's daemon, secrets among them. Raises OSError."""
    environment: dict[str, str] = json.loads((folder / ENVIRONMENT_FILE).read_text())
    return environment


def _write(path: Path, content: str, uid: int, reader: int | None = None) -> None:
    """Have `content` in `path`, whole, for `uid` alone, or for the group `reader` to read, too."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchown(file.fileno(), uid, uid if reader is None else reader)
            os.fchmod(file.fileno(), 0o600 if reader is None else 0o640)
            file.write(content)
        os.rename(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
