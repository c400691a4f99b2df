"""Decodes compressed images while their study is still coming, so that its analysis need not wait for them.

Only those of the series that would be chosen of what is there by now. An analysis decodes what it does not find; what
is found wrong here is found again there, and told there.
"""

import fcntl
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa
from pydicom.filereader import read_file_meta_info

from dicom_gateway.events import Event, emit
from dicom_gateway.settings import Settings
from dicom_gateway.store import files, index
from dicom_gateway.store.schema import StudyState
from dicom_gateway.store.traits import rule_of_study
from imaging.ahead import decode_ahead, not_decoded
from imaging.headers import Slice, read_studies
from imaging.selection import select_series

LOOK_EVERY_S = 1.0
# About three seconds of JPEG 2000: longer than that no analysis decodes what is being decoded here.
_AT_ONCE = 64
_MAXIMUM_BYTES = 1 << 29
_NEEDED_IN = (StudyState.RECEIVING, StudyState.QUEUED, StudyState.ANALYSING)


@dataclass(slots=True, kw_only=True)
class EarlyDecoder:
    """What one worker has done about the studies that are coming."""

    settings: Settings
    engine: sa.Engine
    _looked_at: dict[str, int] = field(default_factory=dict)
    _tried: dict[str, set[Path]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget what was decoded before a restart, which a power cut may have left damaged.

        Before anything is analysed; not where another worker decodes, for that has done it.
        """
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            shutil.rmtree(self.settings.decoded_dir, ignore_errors=True)

    def run(self, stop: threading.Event) -> None:
        """Look every LOOK_EVERY_S until `stop` is set; of workers that share a data folder only one does."""
        with self._lock_file() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(self.settings.decoded_dir, ignore_errors=True)
            while not stop.wait(LOOK_EVERY_S):
                try:
                    while self.once():
                        pass
                except Exception as error:  # noqa: BLE001  # edge: nothing waits for it
                    emit(Event.EARLY_DECODING_FAILED, level="warning", error=type(error).__name__)

    def _lock_file(self) -> TextIO:
        return (self.settings.data_dir / "decoder.lock").open("w")

    def once(self) -> bool:
        """Decode some images of each study that is coming, and forget those that need it no more; whether any were."""
        coming = index.list_studies(self.engine, None, state=StudyState.RECEIVING)
        self._forget({study.study_instance_uid for study in coming})
        return any([self._decode(study) for study in coming])

    def _decode(self, study: index.StudyRow) -> bool:
        uid = study.study_instance_uid
        if self._looked_at.get(uid) == study.instance_count:
            return False
        waiting = self._waiting(study)
        if not waiting:
            self._looked_at[uid] = study.instance_count
            return False
        batch = waiting[:_AT_ONCE]
        self._tried.setdefault(uid, set()).update(image.path for image in batch)
        size_bytes = 2 * sum(image.rows * image.columns for image in batch)
        if size_bytes <= _MAXIMUM_BYTES:
            floor_bytes = self.settings.minimum_free_space_mb * 1_000_000
            files.require_space(self.settings.data_dir, size_bytes, floor_bytes)
            folder = self.settings.decoded_dir / uid
            folder.mkdir(parents=True, exist_ok=True)
            decode_ahead(batch, folder)
        return True

    def _waiting(self, study: index.StudyRow) -> list[Slice]:
        uid, data_dir = study.study_instance_uid, self.settings.data_dir
        samples = index.list_series_samples(self.engine, uid, study.revision)
        if not any(read_file_meta_info(data_dir / sample).TransferSyntaxUID.is_encapsulated for sample in samples):
            return []
        rule = rule_of_study(self.engine, self.settings, uid)
        if rule is not None and not rule.analyse:
            return []
        rows = index.list_instances(self.engine, uid, study.revision)
        studies, _ = read_studies([data_dir / row.path for row in rows])
        chosen = select_series(studies[0]).chosen if studies else None
        slices = not_decoded(chosen.slices if chosen else (), self.settings.decoded_dir / uid)
        return [image for image in slices if image.path not in self._tried.get(uid, ())]

    def _forget(self, coming: set[str]) -> None:
        self._looked_at = {uid: count for uid, count in self._looked_at.items() if uid in coming}
        self._tried = {uid: paths for uid, paths in self._tried.items() if uid in coming}
        for folder in self.settings.decoded_dir.glob("*"):
            study = index.get_study(self.engine, folder.name)
            if study is None or study.state not in _NEEDED_IN:
                shutil.rmtree(folder, ignore_errors=True)
