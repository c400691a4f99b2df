"""Senders that break off, repeat, race each other or give several images one name."""

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from running import make_settings, role, wait_until

from dicom_gateway.settings import Settings
from dicom_gateway.store import files, index
from dicom_gateway.store.schema import open_database
from imaging.uids import derive_uid
from trials.ground import Tally, acknowledged, answers, digest, judge, sop_instance_uid, start_storescu, write_study

IMAGES = 12
DUPLICATE = "Stored already, with other bytes"


def trouble(folder: Path, trials: int, seed: int) -> list[Tally]:
    """Each kind as often, all on one listener."""
    settings = make_settings(folder, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
    kinds = (vanish, abort, repeat, race, rename, race_renamed, name_all_alike)
    with role(settings, "listener"):
        return [kind(settings, folder / kind.__name__, trials, seed) for kind in kinds]


def vanish(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """The sender is killed at a random moment, then sends everything again."""
    tally, choice = Tally("sender killed at random"), random.Random(seed)
    sent: dict[str, str] = {}
    for trial in range(trials):
        sent |= write_study(out / str(trial), f"vanish {trial} {seed}", IMAGES)
        sender = start_storescu(settings, out / str(trial))
        time.sleep(choice.uniform(0.02, 0.2))
        sender.kill()
        new = acknowledged(answers(sender)) | acknowledged(answers(start_storescu(settings, out / str(trial))))
        _settle(settings, sent)
        tally.tried += 1
        tally.acknowledged += len(new)
        tally.add(judge(settings, sent, new))
    return tally


def abort(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """A-ABORT after a random part of an image."""
    tally, choice = Tally("A-ABORT in mid image"), random.Random(seed)
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    for trial in range(trials):
        sent = write_study(out / str(trial), f"abort {trial} {seed}", 1)
        path = next((out / str(trial)).iterdir())
        with path.open("rb") as file:
            file.seek(files.data_set_offset(file))
            data_set = file.read()
        association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        context = association.accepted_contexts[0].context_id
        command = c_store_command(sop_instance_uid(path))
        part = data_set[: choice.randrange(len(data_set))]
        association.dul.socket.send(p_data(context, command, 0x03) + p_data(context, part, 0x00))
        association.abort()
        _settle(settings, sent)
        tally.tried += 1
        found = judge(settings, sent, ())
        tally.add(found)
        tally.note("parts that were kept", sum(path.stem in sent for path in files.stored_paths(settings.data_dir)))
    return tally


def repeat(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """The same study twice, one after the other."""
    tally = Tally("the same study twice")
    for trial in range(trials):
        sent = write_study(out / str(trial), f"repeat {trial} {seed}", IMAGES)
        for _ in range(2):
            new = acknowledged(answers(start_storescu(settings, out / str(trial))))
            tally.add(judge(settings, sent, sent))
        tally.tried += 1
        tally.acknowledged += len(new)
        tally.note("reopened", revision_of(settings, f"repeat {trial} {seed}") > 1)
    return tally


def race(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """Four senders with the same study at the same time."""
    tally = Tally("four senders with one study")
    for trial in range(trials):
        sent = write_study(out / str(trial), f"race {trial} {seed}", IMAGES)
        senders = [start_storescu(settings, out / str(trial)) for _ in range(4)]
        taken = [acknowledged(answers(sender)) for sender in senders]
        tally.tried += 1
        tally.acknowledged += len(set().union(*taken))
        tally.note("acknowledgements", sum(map(len, taken)))
        tally.add(judge(settings, sent, sent))
    return tally


def rename(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """A study, then other images under its UIDs."""
    tally = Tally("other bytes under the same UIDs")
    for trial in range(trials):
        first, second = _two_of_one_name(out / str(trial), f"rename {trial} {seed}")
        tally.acknowledged += len(acknowledged(answers(start_storescu(settings, first))))
        found = answers(start_storescu(settings, second, "--no-halt"))
        tally.tried += 1
        tally.note("refused", sum(answer != "Success" for _, answer in found))
        tally.note("counted for the operator", refused(settings, f"rename {trial} {seed}"))
        tally.add(judge(settings, digests(first), digests(first)))
    return tally


def race_renamed(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """Two senders at the same time, with other bytes under the same UIDs."""
    tally = Tally("two senders, other bytes under the same UIDs")
    for trial in range(trials):
        folders = _two_of_one_name(out / str(trial), f"race renamed {trial} {seed}")
        senders = [start_storescu(settings, folder, "--no-halt") for folder in folders]
        given = [answers(sender) for sender in senders]
        found = [acknowledged(one) for one in given]
        tally.tried += 1
        tally.note("acknowledged to both", len(found[0] & found[1]))
        tally.note("refused", sum(answer != "Success" for one in given for _, answer in one))
        tally.note("counted for the operator", refused(settings, f"race renamed {trial} {seed}"))
        for folder, taken in zip(folders, found, strict=True):
            sent = digests(folder)
            tally.acknowledged += len(taken)
            tally.add(judge(settings, {uid: sent[uid] for uid in taken}, taken))
    return tally


def name_all_alike(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """One SOP Instance UID on every slice: the first that comes is the image of that name."""
    tally = Tally("one UID on every slice")
    for trial in range(trials):
        uid = derive_uid("alike", str(trial), str(seed))
        write_study(out / str(trial), f"alike {trial} {seed}", IMAGES, SOPInstanceUID=uid)
        found = answers(start_storescu(settings, out / str(trial), "--no-halt"))
        (stored,) = [path for path in files.stored_paths(settings.data_dir) if path.stem == uid]
        taken = {digest(path) for path, answer in found if answer == "Success"}
        tally.tried += 1
        tally.acknowledged += len(taken)
        tally.note("refused", sum(answer != "Success" for _, answer in found))
        tally.note("counted for the operator", refused(settings, f"alike {trial} {seed}"))
        tally.add({"lost": taken - {digest(settings.data_dir / stored)}})
    return tally


def revision_of(settings: Settings, name: str) -> int:
    """The revision of a trial's study."""
    engine = open_database(settings.database)
    study = index.get_study(engine, derive_uid("trial", name))
    engine.dispose()
    assert study is not None
    return study.revision


def refused(settings: Settings, name: str) -> int:
    """How many images of a trial's study the operator is told were not taken for their bytes."""
    engine = open_database(settings.database)
    refusals = index.list_refusals(engine, derive_uid("trial", name))
    engine.dispose()
    return Counter({refusal.reason: refusal.count for refusal in refusals})[DUPLICATE]


def digests(folder: Path) -> Mapping[str, str]:
    """SHA-256 of each file's data set by SOP Instance UID."""
    return {sop_instance_uid(path): digest(path) for path in folder.iterdir()}


def c_store_command(sop_instance_uid: str) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 Table 9.3-1)."""
    elements = (
        (0x0002, _text(CTImageStorage)),
        (0x0100, b"\x01\x00"),
        (0x0110, b"\x01\x00"),
        (0x0700, b"\x00\x00"),
        (0x0800, b"\x01\x00"),
        (0x1000, _text(sop_instance_uid)),
    )
    body = b"".join(b"\0\0" + tag.to_bytes(2, "little") + len(v).to_bytes(4, "little") + v for tag, v in elements)
    return bytes(4) + (4).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body


def p_data(context_id: int, fragment: bytes, control: int) -> bytes:
    """A P-DATA-TF PDU with one fragment (PS3.8 9.3.5); bit 0 of `control`: command, bit 1: last."""
    value = bytes([context_id, control]) + fragment
    item = len(value).to_bytes(4, "big") + value
    return b"\x04\x00" + len(item).to_bytes(4, "big") + item


def _text(value: str) -> bytes:
    return value.encode("ascii") + b"\0" * (len(value) % 2)


def _two_of_one_name(folder: Path, name: str) -> tuple[Path, Path]:
    folders = folder / "first", folder / "second"
    for side, out in zip((160, 128), folders, strict=True):
        write_study(out, name, IMAGES, side)
    return folders


def _settle(settings: Settings, sent: Mapping[str, str]) -> None:
    """The listener sees the end of an association after the sender does."""

    def settled() -> bool:
        found = judge(settings, sent, ())
        return not found["left over"] and not found["not indexed"]

    wait_until(settled, "the end of the broken association")
