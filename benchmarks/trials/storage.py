"""Storage that is full, read-only, gone or stalled while images come, and is well again without a restart."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import make_settings, role

from dicom_gateway.settings import Settings
from trials.ground import Tally, acknowledged, answers, judge, start_storescu, write_study

IMAGES = 12
STALL_S = 3.0
FLOOR_MB = 24
_DISK_MB = 96
OUT_OF_RESOURCES = "Refused: OutOfResources"

Fault = Callable[[Settings], Any]


def fail_storage(folder: Path, trials: int, seed: int) -> list[Tally]:
    """Each fault as often."""
    faults: dict[str, tuple[Fault, dict[str, Any]]] = {
        "disk full to the floor": (full_to_the_floor, {"minimum_free_space_mb": FLOOR_MB}),
        "disk full": (full, {"minimum_free_space_mb": 0}),
        "read-only disk": (read_only, {"database_url": f"sqlite:///{folder / 'elsewhere.sqlite'}"}),
        "data folder gone": (gone, {}),
        "empty disk in its place": (another_disk, {}),
    }
    tallies = []
    for name, (fault, values) in faults.items():
        with disk(folder / name) as site:
            settings = make_settings(site, **values, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
            tallies.append(fail(name, settings, folder / "out", fault, trials, seed))
    with disk(folder / "stalled") as site:
        settings = make_settings(site, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
        tallies.append(stall(settings, folder / "out", trials, seed))
    return tallies


def fail(name: str, settings: Settings, out: Path, fault: Fault, trials: int, seed: int) -> Tally:
    """A study before the fault, one in it, the same one again after it; one listener throughout."""
    tally = Tally(name)
    sent: dict[str, str] = {}
    taken: set[str] = set()
    with role(settings, "listener") as listener:
        for trial in range(trials):
            before, during = (out / f"{name}{trial}{when}" for when in ("before", "during"))
            sent |= write_study(before, f"{before} {seed}", IMAGES) | write_study(during, f"{during} {seed}", IMAGES)
            taken |= acknowledged(answers(start_storescu(settings, before)))
            with fault(settings):
                found = answers(start_storescu(settings, during, "--no-halt"))
            taken |= acknowledged(found)
            tally.note("out of resources (0xA700)", sum(answer == OUT_OF_RESOURCES for _, answer in found))
            tally.note("another refusal", sum(answer not in ("Success", OUT_OF_RESOURCES) for _, answer in found))
            tally.note("association refused", not found)
            again = acknowledged(answers(start_storescu(settings, during, "--no-halt")))
            tally.note("taken after it", len(again))
            taken |= again
            tally.tried += 1
            tally.note("restarts", listener.poll() is not None)
            tally.add(judge(settings, sent, taken))
    tally.acknowledged = len(taken)
    return tally


def stall(settings: Settings, out: Path, trials: int, seed: int) -> Tally:
    """The file system takes no write for STALL_S in mid study; the sender waits."""
    tally = Tally(f"disk stalled for {STALL_S:.0f} s")
    sent: dict[str, str] = {}
    taken: set[str] = set()
    mount = settings.data_dir.parent
    with role(settings, "listener"):
        for trial in range(trials):
            sent |= write_study(out / f"stalled{trial}", f"stalled {trial} {seed}", IMAGES)
            sender = start_storescu(settings, out / f"stalled{trial}")
            time.sleep(0.1)
            subprocess.run(["fsfreeze", "-f", str(mount)], check=True)
            time.sleep(STALL_S)
            subprocess.run(["fsfreeze", "-u", str(mount)], check=True)
            new = acknowledged(answers(sender))
            taken |= new
            tally.tried += 1
            tally.note("studies taken whole", len(new) == IMAGES)
            tally.add(judge(settings, sent, taken))
    tally.acknowledged = len(taken)
    return tally


@contextmanager
def full_to_the_floor(settings: Settings) -> Iterator[None]:
    """Less free than the site's floor."""
    with _filled(settings, leave_bytes=(FLOOR_MB - 1) * 1_000_000):
        yield


@contextmanager
def full(settings: Settings) -> Iterator[None]:
    """No byte free after an image or two."""
    with _filled(settings, leave_bytes=120_000):
        yield


@contextmanager
def read_only(settings: Settings) -> Iterator[None]:
    """The file system takes no writes."""
    mount = str(settings.data_dir.parent)
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", mount], check=True)


@contextmanager
def gone(settings: Settings) -> Iterator[None]:
    """The data folder is not there."""
    elsewhere = settings.data_dir.with_name("elsewhere")
    settings.data_dir.rename(elsewhere)
    yield
    elsewhere.rename(settings.data_dir)


@contextmanager
def another_disk(settings: Settings) -> Iterator[None]:
    """An empty file system is mounted over the data folder."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(settings.data_dir)], check=True)
    yield
    subprocess.run(["umount", "-l", str(settings.data_dir)], check=True)


@contextmanager
def _filled(settings: Settings, leave_bytes: int) -> Iterator[None]:
    filler = settings.data_dir / "filler"
    with filler.open("wb", buffering=0) as file:
        block = bytes(1 << 16)
        try:
            while shutil.disk_usage(settings.data_dir).free > leave_bytes:
                file.write(block)
        except OSError:
            file.truncate(max(0, file.tell() - leave_bytes))
    yield
    filler.unlink()


@contextmanager
def disk(site: Path) -> Iterator[Path]:
    """A small file system of its own at `site`."""
    site.mkdir()
    image = site.with_name(f"{site.name}.disk")
    with image.open("wb") as file:
        file.truncate(_DISK_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(site)], check=True)
    try:
        yield site
    finally:
        subprocess.run(["umount", "-l", str(site)], check=True)
