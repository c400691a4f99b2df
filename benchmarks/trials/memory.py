"""The memory of the listener while eight associations send large studies and one sends a large multi-frame object."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from factories import save_ct
from pydicom.uid import EnhancedCTImageStorage
from running import make_settings, role

from imaging.uids import derive_uid
from trials.ground import Tally, acknowledged, answers, digest, judge, start_storescu, write_study

ASSOCIATIONS, IMAGES, SIDE = 8, 1000, 64
FRAMES, FRAME_SIDE = 1000, 512
SAMPLED_EVERY_S = 0.02


def stay_flat(folder: Path, trials: int, seed: int) -> Tally:
    """All at once, again and again into one listener. How much its memory grows since its start is what is told."""
    tally = Tally(f"{ASSOCIATIONS} studies of {IMAGES} images and an object of {FRAMES} frames at once")
    settings = make_settings(folder, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
    with role(settings, "listener") as listener, _peak_mb(listener.pid) as peak:
        tally.note("MB at the start", round(peak[0]))
        for trial in range(trials):
            sent = _write_object(folder / f"object{trial}", f"object {trial} {seed}")
            folders = [folder / f"object{trial}"]
            for number in range(ASSOCIATIONS):
                folders.append(folder / f"study{trial}.{number}")
                sent |= write_study(folders[-1], f"memory {trial} {number} {seed}", IMAGES, SIDE)
            senders = [start_storescu(settings, one) for one in folders]
            with ThreadPoolExecutor(len(senders)) as pool:
                taken = set().union(*map(acknowledged, pool.map(answers, senders)))
            tally.tried += 1
            tally.acknowledged += len(taken)
            tally.note("not taken", len(sent) - len(taken))
            tally.add(judge(settings, sent, taken))
        tally.note("MB at most", round(peak[0]))
    return tally


def _write_object(folder: Path, name: str) -> dict[str, str]:
    folder.mkdir()
    path = folder / "object.dcm"
    values = {"Rows": FRAME_SIDE, "Columns": FRAME_SIDE, "NumberOfFrames": FRAMES}
    pixels = bytes(2 * FRAMES * FRAME_SIDE * FRAME_SIDE)
    uid = derive_uid("trial", name)
    image = save_ct(path, StudyInstanceUID=uid, SOPClassUID=EnhancedCTImageStorage, PixelData=pixels, **values)
    return {str(image.SOPInstanceUID): digest(path)}


@contextmanager
def _peak_mb(pid: int) -> Iterator[list[float]]:
    """The most resident memory seen, in MB, as the one item of a list."""
    process, stop = psutil.Process(pid), threading.Event()
    peak = [process.memory_info().rss / 1e6]

    def watch() -> None:
        while not stop.wait(SAMPLED_EVERY_S):
            peak[0] = max(peak[0], process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
