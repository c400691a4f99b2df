"""What every trial needs: studies to send, a sender that says what was acknowledged, and the verdict afterwards."""

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from factories import save_ct
from running import dcmtk

from dicom_gateway.settings import Settings
from dicom_gateway.store import files
from dicom_gateway.store.schema import instance, open_database
from imaging.uids import derive_uid

SEND_S = 120


@dataclass
class Tally:
    """Of one kind of fault: `tried` of them; images `acknowledged` in all; images that broke a promise, by promise."""

    name: str
    tried: int = 0
    acknowledged: int = 0
    broken: dict[str, set[str]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, verdict: Mapping[str, set[str]]) -> None:
        """Add what `judge` found."""
        for promise, uids in verdict.items():
            if uids:
                self.broken.setdefault(promise, set()).update(uids)

    def note(self, what: str, number: int = 1) -> None:
        """Count something worth telling that breaks no promise."""
        self.notes[what] = self.notes.get(what, 0) + number

    def __str__(self) -> str:
        promises = ("lost", "changed", "twice", "not indexed", "left over")
        broken = ", ".join(f"{name} {len(self.broken.get(name, ()))}" for name in promises)
        told = "".join(f"; {what}: {number}" for what, number in self.notes.items())
        return f"{self.name}: {self.tried} tried, {self.acknowledged} images acknowledged; {broken}{told}"


def write_study(folder: Path, name: str, count: int, side: int = 160, **overrides: object) -> dict[str, str]:
    """`count` slices of side x side pixels of noise as DICOM files: SHA-256 of each data set by SOP Instance UID."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    digests = {}
    for number in range(1, count + 1):
        path = folder / f"{number:04d}.dcm"
        values = {
            "StudyInstanceUID": derive_uid("trial", name),
            "InstanceNumber": number,
            "Rows": side,
            "Columns": side,
            "PixelData": noise.integers(0, 256, 2 * side * side, np.uint8).tobytes(),
        }
        image = save_ct(path, **values | overrides)
        digests[str(image.SOPInstanceUID)] = digest(path)
    return digests


def start_storescu(settings: Settings, folder: Path, *options: str) -> subprocess.Popen[str]:
    """DCMTK's storescu on its way, with TCP_NODELAY so that most of the time is ours."""
    command = [str(dcmtk("storescu")), "-v", *options, "-aet", "CT1", "-aec", settings.ae_title, "+sd", "+r"]
    return subprocess.Popen(
        [*command, "127.0.0.1", str(settings.dicom_port), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def wait_for_a_point(settings: Settings, name: str, count: int, sender: subprocess.Popen[str], more_s: float) -> None:
    """Until `count` images of the study are stored and `more_s` have passed, or the sender has ended."""
    study = settings.studies_dir / derive_uid("trial", name)
    while sender.poll() is None and sum(1 for _ in study.glob("*/*")) < count:
        time.sleep(0.001)
    time.sleep(more_s)


def answers(sender: subprocess.Popen[str]) -> list[tuple[Path, str]]:
    """File and answer of each image that a storescu got an answer for; waits for its end."""
    output, _ = sender.communicate(timeout=SEND_S)
    found, path = [], None
    for line in output.splitlines():
        if match := re.match(r"I: Sending file: (.*)", line):
            path = Path(match[1])
        elif (match := re.match(r"[IWE]: Received Store Response \((.*)\)", line)) and path is not None:
            found.append((path, match[1]))
    return found


def acknowledged(found: Collection[tuple[Path, str]]) -> set[str]:
    """SOP Instance UIDs of the files that were answered with success."""
    return {sop_instance_uid(path) for path, answer in found if answer == "Success"}


def sop_instance_uid(path: Path) -> str:
    """(0002,0003) of a file we wrote."""
    head = path.read_bytes()[:1000]
    at = head.index(b"\x02\x00\x03\x00UI") + 6
    return head[at + 2 : at + 2 + int.from_bytes(head[at : at + 2], "little")].rstrip(b"\0").decode("ascii")


def judge(settings: Settings, sent: Mapping[str, str], taken: Collection[str]) -> dict[str, set[str]]:
    """UIDs of `sent` images, or names of files, that break a promise; `taken` are those acknowledged.

    `lost`: acknowledged, and not stored. `changed`: stored with other bytes than were sent, acknowledged or not.
    `twice`: stored in two places. `not indexed`: stored without its row, or a row without its file. `left over`: part
    files.
    """
    stored: dict[str, list[Path]] = {}
    for path in files.stored_paths(settings.data_dir):
        stored.setdefault(path.stem, []).append(path)
    engine = open_database(settings.database)
    with engine.connect() as connection:
        rows = {row.sop_instance_uid: Path(row.path) for row in connection.execute(sa.select(instance))}
    engine.dispose()
    ours = sent.keys() & stored.keys()
    return {
        "lost": {uid for uid in taken if uid not in stored},
        "changed": {uid for uid in ours if any(digest(settings.data_dir / path) != sent[uid] for path in stored[uid])},
        "twice": {uid for uid in ours if len(stored[uid]) > 1},
        "not indexed": {
            uid for uid in sent if uid in stored.keys() | rows.keys() and [rows.get(uid)] != stored.get(uid, [])[:1]
        },
        "left over": {path.name for path in settings.incoming_dir.iterdir()},
    }


def digest(path: Path) -> str:
    """SHA-256 of a file's data set, "not a DICOM file" when it is none."""
    with path.open("rb") as file:
        try:
            file.seek(files.data_set_offset(file))
        except ValueError:
            return "not a DICOM file"
        return hashlib.file_digest(file, "sha256").hexdigest()
