"""kill -9 at random points while storescu sends, and what is there after the restart."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from running import ROOT, end, make_settings, start_role, wait_until

from dicom_gateway.settings import Settings
from trials.ground import Tally, acknowledged, answers, judge, start_storescu, wait_for_a_point, write_study

IMAGES = 24
# About as long as an image takes, so that the point is anywhere in its reception.
_IMAGE_S = 0.01


def kill_listener(folder: Path, trials: int, seed: int) -> Tally:
    """Only the listener: one start a trial, all on the same data folder."""
    return _kill(folder, trials, seed, "kill -9 of the listener", _start_listener, end)


def kill_service(folder: Path, trials: int, seed: int) -> Tally:
    """Supervisor, listener, worker and web server together."""
    return _kill(folder, trials, seed, "kill -9 of the whole service", _start_service, _end_group)


def _kill(folder, trials, seed, name, start, kill) -> Tally:
    tally, choice = Tally(name), random.Random(seed)
    settings = make_settings(folder, quiet_period_s=600.0, quiet_period_single_image_s=600.0)
    sent: dict[str, str] = {}
    taken: set[str] = set()
    latest: dict[str, str] = {}
    process = start(settings)
    for trial in range(trials):
        study = f"{name} {seed} {trial}"
        latest = write_study(folder / f"out{trial}", study, IMAGES)
        sent |= latest
        senders = [start_storescu(settings, folder / f"out{trial}") for _ in range(choice.choice((1, 1, 2)))]
        wait_for_a_point(settings, study, choice.randrange(IMAGES), senders[0], choice.uniform(0, _IMAGE_S))
        kill(process)
        new = set().union(*(acknowledged(answers(sender)) for sender in senders))
        taken |= new
        tally.tried += 1
        tally.note("in mid study", 0 < len(new) < len(latest))
        process = start(settings)
        tally.add(judge(settings, latest, new))
    tally.acknowledged = len(taken)
    tally.add(judge(settings, sent, taken))
    # Everything again: what is there is a duplicate and a success, what was cut off is taken now.
    for trial in range(trials):
        again = acknowledged(answers(start_storescu(settings, folder / f"out{trial}")))
        tally.note("taken when all is sent again", len(again))
    tally.add(judge(settings, sent, sent))
    kill(process)
    return tally


def _start_listener(settings: Settings) -> subprocess.Popen[str]:
    return start_role(settings, "listener")


def _start_service(settings: Settings) -> subprocess.Popen[str]:
    start = "import sys; from dicom_gateway.service import serve; from dicom_gateway.settings import Settings; "
    start += "serve(Settings.model_validate_json(sys.argv[1]), lambda: print('ready', flush=True))"
    process = subprocess.Popen(
        [sys.executable, "-c", start, settings.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    wait_until(lambda: process.stdout.readline().strip() == "ready", "the service is ready")
    return process


def _end_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
