"""A power cut: what the disk had at a random moment, and nothing that was only in memory.

A file system on a loop device keeps unsynced data in memory and gives the loop device what was synced. At the cut the
listener is stopped, the loop device's file is copied, and the service goes on with the copy, mounted anew.
"""

import os
import random
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

from running import end, make_settings, start_role

from trials.ground import Tally, acknowledged, answers, judge, start_storescu, wait_for_a_point, write_study

IMAGES = 24
_IMAGE_S = 0.01
# Journals are written when somebody asks for it, not after the usual 5 s (ext4) and 30 s (btrfs).
_FILE_SYSTEMS = {
    "ext4": (64, ["mkfs.ext4", "-q", "-F"], "loop,commit=600,noauto_da_alloc"),
    "xfs": (320, ["mkfs.xfs", "-q"], "loop"),
    "btrfs": (256, ["mkfs.btrfs", "-q", "-f"], "loop,commit=300"),
}
# Preloaded by the controls: syncs that do nothing, of every file or of folders alone.
_NO_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
static int sync_of(const char *name, int fd) {
    struct stat status;
    if (!FOLDERS_ALONE || (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode))) return 0;
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return sync_of("fsync", fd); }
int fdatasync(int fd) { return sync_of("fdatasync", fd); }
"""


def cut_power(folder: Path, trials: int, seed: int) -> Tally:
    """As many cuts on each file system."""
    tally = Tally("power cut")
    for file_system in _FILE_SYSTEMS:
        _cut(tally, folder, file_system, trials // len(_FILE_SYSTEMS), seed)
    return tally


def cut_power_without_sync(folder: Path, trials: int, seed: int) -> list[Tally]:
    """The same with syncs that do nothing: shows that the trial sees what is lost."""
    controls = {"control without any sync": 0, "control without syncs of folders": 1}
    return [_control(folder / str(alone), trials, seed, name, alone) for name, alone in controls.items()]


def _control(folder: Path, trials: int, seed: int, name: str, folders_alone: int) -> Tally:
    folder.mkdir()
    source, library = folder / "no_sync.c", folder / "no_sync.so"
    source.write_text(_NO_SYNC)
    define = f"-DFOLDERS_ALONE={folders_alone}"
    subprocess.run(["cc", "-shared", "-fPIC", define, "-o", str(library), str(source), "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(library)
    try:
        tally = cut_power(folder, trials, seed)
    finally:
        del os.environ["LD_PRELOAD"]
    tally.name = f"power cut, {name}"
    return tally


def _cut(tally: Tally, folder: Path, file_system: str, trials: int, seed: int) -> None:
    size_mb, make, options = _FILE_SYSTEMS[file_system]
    choice, disk = random.Random(seed), folder / f"{file_system}.disk"
    disk.touch()
    os.truncate(disk, size_mb << 20)
    subprocess.run([*make, str(disk)], check=True)
    site = folder / file_system
    site.mkdir()
    sent: dict[str, str] = {}
    taken: set[str] = set()
    with _mounted(disk, site, options):
        settings = make_settings(site, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
        subprocess.run(["sync", "-f", str(site)], check=True)
    for trial in range(trials):
        out = folder / f"{file_system}{trial}"
        name = f"{file_system} {seed} {trial}"
        sent |= write_study(out, name, IMAGES)
        after = folder / "after.disk"
        with _mounted(disk, site, options):
            listener = start_role(settings, "listener")
            sender = start_storescu(settings, out)
            wait_for_a_point(settings, name, choice.randrange(IMAGES), sender, choice.uniform(0, _IMAGE_S))
            os.kill(listener.pid, signal.SIGSTOP)
            subprocess.run(["cp", "--sparse=always", str(disk), str(after)], check=True)
            end(listener)
        new = acknowledged(answers(sender))
        taken |= new
        tally.tried += 1
        tally.note(f"{file_system}: in mid study", 0 < len(new) < IMAGES)
        after.replace(disk)
        shutil.rmtree(out)
        with _mounted(disk, site, options):
            listener = start_role(settings, "listener")
            tally.add(judge(settings, sent, taken))
            end(listener)
            # What the restart did stays: the next cut is another day.
            subprocess.run(["sync", "-f", str(site)], check=True)
    tally.acknowledged += len(taken)


@contextmanager
def _mounted(disk: Path, folder: Path, options: str):
    subprocess.run(["mount", "-o", options, str(disk), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
