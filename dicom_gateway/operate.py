"""What an operator can ask and do: state of the service, parked work and its replay, checks of the installation."""

import errno
import hashlib
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from dicom_gateway import dry_run, query
from dicom_gateway.deliver.dimse import echo
from dicom_gateway.errors import ConfigurationError, DeliveryError, NotFound, PeerRefused, StudyHasChanged
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.engine import prepare_jobs
from dicom_gateway.jobs.housekeeping import newest_beat_age_s
from dicom_gateway.jobs.queue import JobQueue, parse_job_id
from dicom_gateway.report.wording import excluded_in_words, outcome_in_words
from dicom_gateway.settings import (
    ANY_AE_TITLE,
    AnyDestination,
    Destination,
    DicomwebDestination,
    FhirDestination,
    Hl7Destination,
    MailDestination,
    Settings,
    Source,
    StowDestination,
    WebhookDestination,
)
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import DeliveryState, StudyState, create_tables, open_database, study
from dicom_gateway.tls import TlsContext, context_towards
from dicom_gateway.users import read_users, require_guarded
from models.errors import ModelError
from models.manifest import load_manifest

_DELIVERIES_LOOKED_AT = 1000
# A UUID of zeros (PS3.5 B.2): nobody has a study of this UID.
_NO_STUDY = "2.25.0"
# What is in them is nobody else's: patient data, and hashes of passwords.
PRIVATE = 0o700
_OTHERS = 0o007


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of the installation; `advice` says what to do where it is not ok."""

    name: str
    ok: bool
    detail: str
    advice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedJob:
    """Work that waits for a person: a failed analysis (`destination` None) or a parked delivery.

    A study that a rule keeps from being analysed is such work only where somebody asks for that study.
    """

    job_id: str
    study_instance_uid: str
    revision: int
    destination: str | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The service at a glance; `worker_seen_s` is None when no worker ever ran.

    `excluded` counts the studies that each rule keeps from being analysed. `not_as_asked` counts, of the latest
    deliveries, what a destination was sent in another class or not at all: (destination, in words) -> deliveries.
    `refused` counts the images that were not taken, by reason.
    """

    counts: index.Counts
    waiting_jobs: dict[str, int]
    worker_seen_s: float | None
    parked: tuple[ParkedJob, ...]
    excluded: Mapping[str, int]
    not_as_asked: dict[tuple[str, str], int]
    refused: Mapping[str, int]


def prepare_data(settings: Settings) -> None:
    """Create the data folder and the tables where they are missing."""
    settings.data_dir.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    for folder in (settings.incoming_dir, settings.studies_dir, settings.results_dir):
        folder.mkdir(mode=PRIVATE, exist_ok=True)
    engine = open_database(settings.database)
    create_tables(engine)
    engine.dispose()
    prepare_jobs(settings.database)


def service_status(settings: Settings) -> ServiceStatus:
    """Counts by state, jobs by queue, the worker's last sign of life and everything parked.

    Raises ConfigurationError where no service has ever run with these settings.
    """
    with opened(settings) as (engine, jobs):
        return ServiceStatus(
            counts=index.counts(engine),
            waiting_jobs=jobs.waiting(),
            worker_seen_s=newest_beat_age_s(engine),
            parked=_parked(engine),
            excluded=index.count_excluded(engine),
            not_as_asked=_not_as_asked(engine),
            refused=index.count_refused(engine),
        )


def list_parked(settings: Settings) -> tuple[ParkedJob, ...]:
    """Failed analyses and parked deliveries, all of them. Raises ConfigurationError as `service_status`."""
    with opened(settings) as (engine, _):
        return _parked(engine)


def replay(settings: Settings, what: str | None) -> tuple[str, ...]:
    """Start parked work again: a job id of `list_parked`, all of a study by its UID, or everything for None.

    A study that a rule keeps from being analysed is analysed when it is named, not with everything. What `kept_parked`
    tells of stays as it is. Returns the ids started. Raises ConfigurationError as `service_status`.
    """
    with opened(settings) as (engine, jobs):
        chosen = [job for job in _chosen(engine, what) if _has_somewhere_to_go(job, settings)]
        started = tuple(job.job_id for job in chosen if _replay(engine, jobs, settings, job))
    for job_id in started:
        emit(Event.REPLAYED, job=job_id)
    return started


def kept_parked(settings: Settings, what: str | None) -> tuple[str, ...]:
    """What `replay` of the same leaves parked, each with the reason in words. Raises as `service_status`."""
    with opened(settings) as (engine, _):
        kept = [job for job in _chosen(engine, what) if not _has_somewhere_to_go(job, settings)]
    return tuple(f"{job.job_id} stays parked: the destination is no longer configured" for job in kept)


def analyse_again(settings: Settings, study_instance_uid: str) -> int:
    """Queue another analysis of a study that has its report, as with a new model; the number of its revision.

    The report that it has is kept, and superseded by the other one, which goes to the same destinations. Raises
    NotFound without such a study, StudyHasChanged where it has no report yet, ConfigurationError as `service_status`.
    """
    with opened(settings) as (engine, jobs):
        row = index.get_study(engine, study_instance_uid)
        if row is None:
            raise NotFound("There is no such study.")
        revision, now = row.revision + 1, time.time()
        with engine.begin() as connection:
            if not ledger.queue_next_revision(connection, study_instance_uid, row.revision, now=now):
                raise StudyHasChanged("the study is not at rest: it has no report of its newest revision")
            job_id = jobs.submit_analysis(connection, study_instance_uid, revision, created=now, priority=row.priority)
    emit(Event.REPLAYED, job=job_id)
    return revision


def try_rules(
    settings: Settings, since: datetime, on_progress: Callable[[int, int], None]
) -> tuple[dry_run.Trial, ...]:
    """What the rules would have done with the studies heard of since then. Raises as `service_status`."""
    with opened(settings) as (engine, _):
        return dry_run.try_rules(engine, settings, since, on_progress=on_progress)


def print_status(settings: Settings, console: Console) -> None:
    """The service's state as tables."""
    status = service_status(settings)
    seen = status.worker_seen_s
    console.print("worker: " + ("never seen" if seen is None else f"last seen {seen:.0f} s ago"))
    table = Table("state", "studies", "deliveries")
    for state in dict.fromkeys([*status.counts.studies, *status.counts.deliveries]):
        numbers = (getattr(status.counts, side).get(state) for side in ("studies", "deliveries"))
        table.add_row(state.value, *("" if number is None else str(number) for number in numbers))
    console.print(table)
    for name, number in status.waiting_jobs.items():
        console.print(f"{number} jobs wait or run in queue {name}")
    for (destination, words), number in status.not_as_asked.items():
        console.print(f"{destination}: {words} ({number} of the latest deliveries)", soft_wrap=True)
    for rule, number in status.excluded.items():
        console.print(f"{excluded_in_words(rule)} ({number})")
    for reason, number in status.refused.items():
        console.print(f"not taken: {number} images: {reason}", soft_wrap=True)
    for job in status.parked:
        console.print(f"parked: {job.job_id}  {job.error}", soft_wrap=True)


def doctor(settings: Settings) -> list[Check]:
    """Check data folder, database, model, senders, ports and destinations; creates what is missing of the first two."""
    checks = [_check_disk(settings), _check_database(settings), _check_session(settings), _check_senders(settings)]
    checks.append(_check_dicom_port(settings))
    checks += [_check_web_port(settings), _check_web_access(settings)]
    checks += [_check_destination(settings, peer) for peer in settings.destinations]
    checks += [_check_source(settings, source) for source in settings.sources]
    if not settings.destinations:
        checks.append(Check(name="destinations", ok=True, detail="none: reports stay on the web page and on disk"))
    return checks


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[sa.Engine, JobQueue]]:
    """Index and queue of the service. Raises ConfigurationError where none has ever run with these settings."""
    _require_data(settings)
    try:
        prepare_data(settings)
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(f"cannot use the database ({type(error).__name__}); see onescan doctor") from error
    engine = open_database(settings.database)
    jobs = JobQueue(engine)
    try:
        yield engine, jobs
    finally:
        jobs.close()
        engine.dispose()


def _require_data(settings: Settings) -> None:
    """Raises ConfigurationError rather than to make a data folder wherever the command happens to run."""
    database = sa.make_url(settings.database)
    embedded = database.get_backend_name() == "sqlite"
    try:
        there = Path(database.database or "").is_file() if embedded else settings.data_dir.is_dir()
    except OSError as error:
        raise ConfigurationError(
            f"{settings.data_dir.resolve()}: {error.strerror}; ask as the service's user"
        ) from error
    if not there:
        raise ConfigurationError(
            f"no service has run with data_dir {settings.data_dir.resolve()}: check data_dir, or --config with its file"
        )


def _chosen(engine: sa.Engine, what: str | None) -> list[ParkedJob]:
    """The parked work that `replay` is asked for."""
    parked = _parked(engine, None if what is None else _study_of(what))
    return [job for job in parked if what in (None, job.job_id, job.study_instance_uid)]


def _has_somewhere_to_go(job: ParkedJob, settings: Settings) -> bool:
    """Nobody takes jobs from the queue of a destination that is not in the settings, nor would anybody see them."""
    return job.destination is None or job.destination in {peer.name for peer in settings.destinations}


def _study_of(what: str) -> str:
    try:
        return parse_job_id(what)[0]
    except ValueError:
        return what


def _parked(engine: sa.Engine, study_instance_uid: str | None = None) -> tuple[ParkedJob, ...]:
    """Everything parked, or that of one study, to which its analysis belongs where a rule has kept it from it."""
    if study_instance_uid is None:
        failed = index.list_studies(engine, limit=None, state=StudyState.FAILED)
    else:
        row = index.get_study(engine, study_instance_uid)
        failed = (row,) if row is not None and row.state in (StudyState.FAILED, StudyState.EXCLUDED) else ()
    analyses = [
        ParkedJob(
            job_id=f"study:{row.study_instance_uid}:r{row.revision}:0",
            study_instance_uid=row.study_instance_uid,
            revision=row.revision,
            destination=None,
            error=excluded_in_words(row.rule or "") if row.state is StudyState.EXCLUDED else row.error or "",
        )
        for row in failed
    ]
    deliveries = [
        ParkedJob(
            job_id=f"deliver:{row.study_instance_uid}:r{row.revision}:{row.destination}",
            study_instance_uid=row.study_instance_uid,
            revision=row.revision,
            destination=row.destination,
            error=row.last_error or "",
        )
        for row in index.list_deliveries(engine, study_instance_uid, state=DeliveryState.PARKED)
    ]
    return (*analyses, *deliveries)


def _not_as_asked(engine: sa.Engine) -> dict[tuple[str, str], int]:
    delivered = index.list_deliveries(engine, state=DeliveryState.DELIVERED, limit=_DELIVERIES_LOOKED_AT)
    return Counter(
        (row.destination, outcome_in_words(outcome))
        for row in delivered
        for outcome in row.outcomes
        if outcome.sent_as != outcome.name
    )


def _replay(engine: sa.Engine, jobs: JobQueue, settings: Settings, job: ParkedJob) -> bool:
    """State and job in one transaction; False when somebody else was faster."""
    now = time.time()
    with engine.begin() as connection:
        if job.destination is None:
            row = connection.execute(
                sa.select(study.c.state, study.c.queued_at, study.c.priority).where(
                    study.c.study_instance_uid == job.study_instance_uid
                )
            ).one()
            # An analysis on request has not been queued before; the report carries the time it was asked for.
            queued_at = now if row.state == StudyState.EXCLUDED else row.queued_at
            changed = ledger.change_study(
                connection,
                job.study_instance_uid,
                job.revision,
                to=StudyState.QUEUED,
                since=(StudyState.FAILED, StudyState.EXCLUDED),
                queued_at=queued_at,
            )
            if changed:
                jobs.submit_analysis(
                    connection,
                    job.study_instance_uid,
                    job.revision,
                    created=queued_at,
                    priority=row.priority,
                    run=int(now * 1000),
                )
            return changed
        delivery = index.get_delivery(engine, job.study_instance_uid, job.revision, job.destination)
        changed = delivery is not None and ledger.change_delivery(
            connection,
            job.study_instance_uid,
            job.revision,
            job.destination,
            to=DeliveryState.PENDING,
            now=now,
            since=(DeliveryState.PARKED,),
        )
        if delivery is not None and changed:
            jobs.submit_delivery(
                connection,
                job.study_instance_uid,
                job.revision,
                job.destination,
                attempt=delivery.attempts + 1,
                attempts_left=settings.delivery_attempts - 1,
            )
        return changed


def _check_disk(settings: Settings) -> Check:
    folder = settings.data_dir.resolve()
    try:
        settings.data_dir.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        settings.incoming_dir.mkdir(mode=PRIVATE, exist_ok=True)
    except OSError as error:
        return Check(
            name="data folder",
            ok=False,
            detail=f"{folder}: {error.strerror}",
            advice="Set data_dir to a folder of yours.",
        )
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    ok = os.access(folder, os.W_OK) and free_mb >= settings.minimum_free_space_mb
    advice = None if ok else "Make room, or point data_dir to a larger writable disk."
    if ok and folder.stat().st_mode & _OTHERS:
        ok, advice = False, f"Everybody on this machine gets in: chmod o-rwx {folder}"
    return Check(name="data folder", ok=ok, detail=f"{folder}, {free_mb} MB free", advice=advice)


def _check_database(settings: Settings) -> Check:
    name = sa.make_url(settings.database).render_as_string(hide_password=True)
    try:
        prepare_data(settings)
        engine = open_database(settings.database)
        index.counts(engine)
        engine.dispose()
    except (sa.exc.SQLAlchemyError, OSError) as error:
        return Check(
            name="database",
            ok=False,
            detail=f"{name}: {type(error).__name__}",
            advice="Check that the server runs and database_url is right.",
        )
    return Check(name="database", ok=True, detail=name)


def check_model(settings: Settings) -> Check:
    """Whether the weights of the model folder are those its manifest describes."""
    try:
        manifest = load_manifest(settings.model_dir)
        with (settings.model_dir / manifest.weights).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    except (ModelError, OSError) as error:
        return Check(name="model", ok=False, detail=str(error), advice="Set model_dir to a model folder.")
    ok = digest == manifest.sha256
    detail = f"{manifest.name} {manifest.version}, sha256 {digest[:12]}"
    advice = None if ok else "The weights are not those model.json describes: copy the folder again."
    return Check(name="model", ok=ok, detail=detail, advice=advice)


def _check_session(settings: Settings) -> Check:
    """`check_model`, and whether the installed onnxruntime runs it with the site's execution provider."""
    check = check_model(settings)
    if not check.ok:
        return check
    # Not at import: this module is also that of processes that never run the network.
    from models.session import ModelSession

    try:
        ModelSession.open(settings.model_dir, settings.execution_provider, threads=1)
    except ModelError as error:
        advice = "Install the onnxruntime for execution_provider, or set another one."
        return Check(name="model", ok=False, detail=str(error), advice=advice)
    return Check(name="model", ok=True, detail=f"{check.detail}, on {settings.execution_provider}")


def _check_senders(settings: Settings) -> Check:
    titles = ", ".join(settings.calling_ae_titles)
    advice = None if titles else 'List the AE titles of your PACS in calling_ae_titles (["*"] for anybody).'
    detail = titles or "nobody may send images"
    try:
        settings.dicom_passcodes()
    except ConfigurationError as error:
        detail, advice = str(error), "Nobody gets in without it: see dicom_passcodes_file."
    # They answer in an association of their own (PS3.4 J.3.3), which is asked like any other who it is.
    unheard = [
        peer.name
        for peer in settings.destinations
        if isinstance(peer, Destination) and peer.storage_commitment and not settings.accepts(peer.ae_title)
    ]
    if unheard and advice is None:
        detail = f"no answer about storage commitment can come from {', '.join(unheard)}"
        advice = "List their AE titles in calling_ae_titles."
    urgent = [title for title in settings.stat_calling_ae_titles if title != ANY_AE_TITLE]
    if advice is None and (strangers := [title for title in urgent if not settings.accepts(title)]):
        detail = f"{', '.join(strangers)} of stat_calling_ae_titles may not send images"
        advice = "List them in calling_ae_titles, too."
    return Check(name="senders", ok=advice is None, detail=detail, advice=advice)


def _check_dicom_port(settings: Settings) -> Check:
    if settings.dicom_tls_certificate_file is not None:
        try:
            TlsContext(settings)
        except ConfigurationError as error:
            return Check(name="DICOM port", ok=False, detail=str(error), advice="See dicom_tls_certificate_file.")

    def is_ours() -> bool:
        host, port = settings.dicom_loopback_host, settings.dicom_port
        if settings.dicom_tls_certificate_file is not None:
            return _speaks_tls(host, port)
        us = Destination(name="self", ae_title=settings.ae_title, host=host, port=port)
        try:
            echo(us, calling_ae_title=(*settings.calling_ae_titles, settings.ae_title)[0].replace("*", "DOCTOR"))
        except PeerRefused:
            return True
        except DeliveryError:
            return False
        return True

    return _check_port("DICOM port", settings.dicom_host, settings.dicom_port, is_ours, "dicom_port")


def _speaks_tls(host: str, port: int) -> bool:
    """Whether TLS is spoken there; it need not let us in, who have no certificate of a sender."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), 5) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return error.reason is not None and "ALERT" in error.reason
    except OSError:
        return False


def _check_web_port(settings: Settings) -> Check:
    def is_ours() -> bool:
        try:
            with urllib.request.urlopen(f"http://{settings.web_host}:{settings.web_port}/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    return _check_port("web port", settings.web_host, settings.web_port, is_ours, "web_port")


def _check_web_access(settings: Settings) -> Check:
    try:
        require_guarded(settings)
    except ConfigurationError as error:
        return Check(name="web access", ok=False, detail=str(error), advice="onescan password NAME makes a line of it.")
    if settings.web_users_file is None:
        detail = f"everybody who reaches {settings.web_host}:{settings.web_port} on this machine"
        return Check(name="web access", ok=True, detail=detail)
    readable = settings.web_users_file.stat().st_mode & _OTHERS
    return Check(
        name="web access",
        ok=not readable,
        detail=f"{len(read_users(settings.web_users_file))} users of {settings.web_users_file}",
        advice=f"Everybody on this machine can read it: chmod o-rwx {settings.web_users_file}" if readable else None,
    )


def _check_port(name: str, host: str, port: int, is_ours: Callable[[], bool], setting: str) -> Check:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if is_ours():
                return Check(name=name, ok=True, detail=f"{host}:{port}, a service answers there")
            detail = f"{host}:{port}: {error.strerror}"
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            advice = f"Another program has it: set {setting}." if taken else "It is no address of this machine."
            return Check(name=name, ok=False, detail=detail, advice=advice)
    return Check(name=name, ok=True, detail=f"{host}:{port} is free (the service is not running)")


def _check_destination(settings: Settings, peer: AnyDestination) -> Check:
    name = f"destination {peer.name}"
    try:
        how = _call(settings, peer)
    except (DeliveryError, ConfigurationError) as error:
        advice = "Check its address."
        if isinstance(peer, Destination):
            advice = f"Check address and AE title; the peer must know {settings.ae_title}."
        return Check(name=name, ok=False, detail=f"{peer.address}: {error}", advice=advice)
    return Check(name=name, ok=True, detail=f"{peer.address} {how}")


def _check_source(settings: Settings, source: Source) -> Check:
    name = f"source {source.name}"
    if not settings.accepts(source.ae_title):
        advice = f"Add {source.ae_title} to calling_ae_titles."
        return Check(name=name, ok=False, detail=f"{source.ae_title} may not send images", advice=advice)
    try:
        query.ask(source, _NO_STUDY, calling_ae_title=settings.ae_title)
    except (DeliveryError, ConfigurationError) as error:
        advice = f"Check address and AE title; the peer must let {settings.ae_title} query."
        return Check(name=name, ok=False, detail=f"{source.address}: {error}", advice=advice)
    return Check(name=name, ok=True, detail=f"{source.address} answers queries")


def _call(settings: Settings, peer: AnyDestination) -> str:
    """What the destination did when it was called, in words. Raises DeliveryError and ConfigurationError."""
    from dicom_gateway.deliver import fhir, mail, mllp, stow, webhook

    match peer:
        case FhirDestination():
            fhir.ask(peer.url, bearer_token=peer.bearer_token())
            return "answers with its capabilities"
        case DicomwebDestination():
            return "is this service itself"
        case StowDestination():
            stow.ask(peer.url, bearer_token=peer.bearer_token())
            return "answers a search"
        case WebhookDestination():
            webhook.connect(peer.url)
            return "takes connections"
        case MailDestination():
            mail.connect(peer)
            return "takes mail"
        case Hl7Destination():
            mllp.connect(peer.host, peer.port, tls=context_towards(peer))
            return "takes connections"
        case _:
            echo(peer, calling_ae_title=settings.ae_title)
            return "answers C-ECHO"
