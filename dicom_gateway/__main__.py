"""One process of the service: `python -m dicom_gateway listener|worker|web [--config onescan.toml]`.

`onescan serve` starts all three; a site that has its own supervisor can run each by itself.
"""

import argparse
import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import Event, configure_logging, emit, tell_uncaught_errors
from dicom_gateway.operate import prepare_data
from dicom_gateway.service import EXIT_CONFIGURATION, PRIVATE_UMASK, READY, ROLES, end_with_parent
from dicom_gateway.settings import Settings
from models.errors import ModelError

CHECK_S = 0.5
# The port of a listener that was killed a moment ago may not be free yet.
BIND_FOR_S = 5.0


def main() -> int:
    """Run one role; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dicom_gateway", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--config", type=Path, default=None, help="settings file")
    parser.add_argument("--supervised", action="store_true", help="settings come on standard input")
    arguments = parser.parse_args()
    os.umask(PRIVATE_UMASK)
    try:
        settings = _settings(arguments)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    configure_logging(settings.log_level, process=arguments.role)
    tell_uncaught_errors()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run = {"listener": run_listener, "worker": run_worker, "web": run_web}[arguments.role]
    try:
        run(settings, stop)
    except ConfigurationError as error:
        print(f"the {arguments.role} cannot start: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except ModelError as error:
        print(f"the {arguments.role} cannot use the model: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except OSError as error:
        is_lasting = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
        if not is_lasting and not isinstance(error, socket.gaierror):
            raise
        print(f"the {arguments.role} cannot have its port: {error.strerror}", file=sys.stderr)
        return EXIT_CONFIGURATION
    return 0


def run_listener(settings: Settings, stop: threading.Event) -> None:
    """Receive images and close quiet studies until `stop` is set."""
    from dicom_gateway import query
    from dicom_gateway.jobs.queue import JobQueue
    from dicom_gateway.receive.assembly import Assembly, QuietRules
    from dicom_gateway.receive.listener import start_listener
    from dicom_gateway.receive.reception import Reception
    from dicom_gateway.receive.reconcile import reconcile
    from dicom_gateway.store.files import sweep
    from dicom_gateway.store.schema import open_database
    from dicom_gateway.store.traits import rule_of_study

    engine = open_database(settings.database)
    reconcile(engine, settings, time.time())
    reception = Reception(settings=settings, engine=open_database(settings.database, rebuildable=True))
    jobs = JobQueue(engine)
    rules = QuietRules(
        quiet_period_s=settings.quiet_period_s,
        quiet_period_single_image_s=settings.quiet_period_single_image_s,
        missing_images_wait_s=settings.missing_images_wait_s,
    )
    assembly = Assembly(
        engine=engine,
        jobs=jobs,
        rules=rules,
        sources={source.ae_title: source for source in settings.sources},
        ask=partial(query.ask, calling_ae_title=settings.ae_title),
        rule_of=partial(rule_of_study, engine, settings),
    )
    _wait_for_port(settings.dicom_host, settings.dicom_port)
    sweep(settings.incoming_dir)
    listener = start_listener(reception)
    # What was imported stays: to look through it again and again for garbage takes 0.1 s of the first study's time.
    gc.collect()
    gc.freeze()
    emit(Event.LISTENER_READY, ae_title=settings.ae_title, port=settings.dicom_port)
    _say_ready()
    while not stop.wait(CHECK_S):
        try:
            open_studies = reception.associations.studies()
            assembly.close_complete(open_studies=open_studies, now=time.time(), clock_s=time.monotonic())
        except Exception as error:  # noqa: BLE001  # edge: the port stays open while studies cannot be closed
            # Mostly a database that is busy, full or away: the studies stay as they are and the next round comes.
            emit(Event.COMPLETION_FAILED, level="error", error=type(error).__name__)
    listener.shutdown()


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Analyse and deliver until `stop` is set."""
    from dicom_gateway import worker

    worker.run_worker(settings, stop, _say_ready)


def run_web(settings: Settings, stop: threading.Event) -> None:
    """Serve pages and API until `stop` is set."""
    from dicom_gateway.web.app import create_app
    from dicom_gateway.web.server import web_server

    server = web_server(create_app(settings), settings)
    _wait_for_port(settings.web_host, settings.web_port)
    thread = threading.Thread(target=server.run, name="web", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    _say_ready()
    while not stop.wait(CHECK_S) and thread.is_alive():
        pass
    server.should_exit = True
    thread.join(10)


def _settings(arguments: argparse.Namespace) -> Settings:
    if not arguments.supervised:
        settings = Settings.load(arguments.config)
        prepare_data(settings)
        return settings
    settings = Settings.model_validate_json(sys.stdin.buffer.readline())
    end_with_parent()
    return settings


def _wait_for_port(host: str, port: int) -> None:
    """Raises OSError when the port is still taken after BIND_FOR_S."""
    give_up = time.monotonic() + BIND_FOR_S
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                if time.monotonic() >= give_up:
                    raise
            else:
                return
        time.sleep(0.2)


def _say_ready() -> None:
    print(READY, flush=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of the job engine and of pynetdicom would keep the interpreter waiting.
    os._exit(code)
