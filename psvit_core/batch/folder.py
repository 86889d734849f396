"""The folder of a run: its files, what each stage left, and what would be replaced. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from psvit_core.errors import OutputError, RecordError
from psvit_core.files import sha256_of, write_text
from psvit_core.records import Record

RESULT = "result.json"
_RECORDS = ".run"  # records of the stages; its presence marks the folder
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """What a finished stage left."""

    document: ClassVar[str] = "run_stage"

    stage: str
    key: str  # hash of all that decides its result
    result: dict[str, Any]
    files: dict[str, str]  # name -> SHA-256
    warnings: tuple[str, ...] = ()  # so far


class RunFolder:
    """The folder of a run. A stage is finished once its record is there, which comes last.

    Args:
        place: The folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._records = place / _RECORDS

    @contextmanager
    def opened(self, names: tuple[str, ...]) -> Iterator[None]:
        """Create the folder and keep other runs out of it.

        Args:
            names: Files that the run writes.

        Raises:
            OutputError: If it cannot be written, another run uses it, or it contains such files
                that no run wrote.
        """
        if not self._records.is_dir():
            foreign = [name for name in names if (self.place / name).exists()]
            if foreign:
                raise OutputError(
                    f"{self.place} contains {', '.join(foreign)}, which no run wrote. Choose "
                    "another folder as out."
                )
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._records / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"Another run uses {self.place} now. Wait for its end, or choose another folder as "
                "out."
            ) from error
        except OSError as error:
            raise OutputError(f"Cannot write {self.place}: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    def find(self, stage: str) -> StageRecord | None:
        """Return the record of a stage; None if it never finished."""
        path = self._records / f"{stage}.json"
        if not path.is_file():
            return None
        try:
            return StageRecord.load(path)
        except RecordError as error:
            raise RecordError(f"{error} Remove {path} to do the stage {stage} again.") from error

    def save(
        self, stage: str, key: str, result: dict[str, Any], names: tuple[str, ...], *warnings: str
    ) -> StageRecord:
        """Write the record of a stage whose files are complete, and return it."""
        record = StageRecord(
            stage=stage,
            key=key,
            result=result,
            files={name: sha256_of(self.place / name) for name in names},
            warnings=warnings,
        )
        record.save(self._records / f"{stage}.json")
        return record

    def missing(self, record: StageRecord) -> list[str]:
        """Return the files of a stage that are gone."""
        return [name for name in record.files if not (self.place / name).is_file()]

    def altered(self, record: StageRecord) -> list[str]:
        """Return the files of a stage that have other contents than it wrote."""
        there = [name for name in record.files if (self.place / name).is_file()]
        return [name for name in there if sha256_of(self.place / name) != record.files[name]]

    def changes(self, config: Mapping[str, Any]) -> list[str]:
        """Return how a configuration differs from that of the last run here, one text per field."""
        path = self._records / _CONFIG
        if not path.is_file():
            return []
        try:
            before = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
        except ValueError as error:
            raise RecordError(f"{path} is not a JSON document ({error}). Remove it.") from error
        now = dict(_flat(config))
        return [
            f"{name}: {json.dumps(before.get(name))} -> {json.dumps(now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
            and name != "out"  # a folder may be moved
            and (name in before or now.get(name) not in ([], None))  # older versions lack the field
        ]

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Keep a configuration to compare the next one with."""
        write_text(self._records / _CONFIG, json.dumps(config, indent=1) + "\n")

    def save_result(self, result: Mapping[str, Any]) -> Path:
        """Write the result, unless it is there already."""
        path, text = self.place / RESULT, json.dumps(result, indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        return path


def _flat(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of all values in nested mappings."""
    if not isinstance(data, Mapping):
        yield name, data
        return
    for key, value in data.items():
        yield from _flat(value, f"{name}.{key}" if name else str(key))
