"""The service: three child processes, kept alive by this one.

A child gets its settings as one line of JSON on standard input and ends when that input ends, so that no child
outlives a parent that was killed. It prints `ready` on standard output once it serves.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from dicom_gateway.events import Event, configure_logging, emit
from dicom_gateway.operate import check_model, prepare_data
from dicom_gateway.settings import Settings

ROLES = ("listener", "worker", "web")
READY = "ready"
# sysexits.h EX_CONFIG: the child cannot start with these settings, and will not on a second try.
EXIT_CONFIGURATION = 78
# Nobody else on this machine reads what the service writes.
PRIVATE_UMASK = 0o077
STOP_S = 30.0
_TICK_S = 0.2
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
_STABLE_S = 60.0


def serve(settings: Settings, ready: Callable[[], None] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT; the exit code. `ready` is called once, when all three serve."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    configure_logging(settings.log_level, process="service")
    os.umask(PRIVATE_UMASK)
    return supervise(settings, stop, ready)


def supervise(settings: Settings, stop: threading.Event, ready: Callable[[], None] | None = None) -> int:
    """As `serve`, until `stop` is set; installs no signal handlers."""
    model = check_model(settings)
    if not model.ok:
        print(f"cannot use the model: {model.detail}. {model.advice}", file=sys.stderr)
        return 1
    try:
        prepare_data(settings)
    except OSError as error:
        print(f"cannot use data_dir {settings.data_dir}: {error.strerror}", file=sys.stderr)
        return 1
    except sa.exc.SQLAlchemyError as error:
        print(f"cannot use the database ({type(error).__name__}); see onescan doctor", file=sys.stderr)
        return 1
    children = [_Child(role, settings) for role in ROLES]
    announced = False
    try:
        while not stop.is_set():
            for child in children:
                child.keep_alive()
            if any(child.cannot_start for child in children):
                return 1
            if not announced and all(child.is_ready for child in children):
                announced = True
                _announce(settings)
                if ready:
                    ready()
            stop.wait(_TICK_S)
    finally:
        emit(Event.SERVICE_STOPPING)
        _stop(children)
    return 0


@dataclass(slots=True)
class _Child:
    """One role's process, started again with growing pauses when it dies. Times are monotonic seconds."""

    role: str
    settings: Settings
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    start_again: float = 0.0
    backoff_s: float = _FIRST_BACKOFF_S
    _ready: threading.Event = field(default_factory=threading.Event)

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    @property
    def cannot_start(self) -> bool:
        """It ended over its settings (a port that is taken, a model that cannot be used) before it ever served."""
        ended = self.process is not None and self.process.poll() == EXIT_CONFIGURATION
        return ended and not self._ready.is_set()

    def keep_alive(self) -> None:
        """Start the process if it does not run and its pause is over."""
        if self.process is not None:
            code = self.process.poll()
            if code is None or self.cannot_start:
                return
            emit(Event.PROCESS_DIED, level="error", role=self.role, exit_code=code)
            self._close()
            if time.monotonic() - self.started > _STABLE_S:
                self.backoff_s = _FIRST_BACKOFF_S
            self.start_again = time.monotonic() + self.backoff_s
            self.backoff_s = min(_LONGEST_BACKOFF_S, self.backoff_s * 2)
        if time.monotonic() >= self.start_again:
            self._start()

    def _start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dicom_gateway", self.role, "--supervised"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self.settings.model_dump_json() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return
        threading.Thread(target=self._listen, args=[self.process], daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == READY:
                self._ready.set()

    def _close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None

    def tell_to_stop(self) -> None:
        """Ask the process to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def end_by(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic s) for its end, then end it."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()


def _stop(children: list[_Child]) -> None:
    for child in children:
        child.tell_to_stop()
    deadline = time.monotonic() + STOP_S
    for child in children:
        child.end_by(deadline)


def _announce(settings: Settings) -> None:
    emit(Event.SETTINGS_LOADED, sha256=_digest(settings))
    emit(Event.SERVICE_READY)
    print(
        f"OneScan is ready: AE title {settings.ae_title}, port {settings.dicom_port}, "
        f"pages at http://{settings.web_host}:{settings.web_port}/ (research use only, not a medical device)",
        flush=True,
    )


def _digest(settings: Settings) -> str:
    """Of all settings but the address of the database, which may hold a password: tells whether one was changed."""
    return hashlib.sha256(settings.model_dump_json(exclude={"database_url"}).encode()).hexdigest()


def end_with_parent() -> None:
    """End this process at once when standard input ends: whoever started it is gone."""
    descriptor = sys.stdin.fileno()

    def watch() -> None:
        # Not through sys.stdin: its lock, held here, would abort an interpreter that ends.
        while os.read(descriptor, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
