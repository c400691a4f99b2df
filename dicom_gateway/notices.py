"""Who is told of what happens to a study, and what: notices are deliveries of how things stand when they are sent."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from pydantic import ValidationError

from dicom_gateway.deliver.notice import Notice
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.report.content import Report
from dicom_gateway.settings import NoticeEvent, NotifiedDestination, Settings
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import REPORT_NAME, result_path
from dicom_gateway.store.schema import DeliveryState

Listener = tuple[NotifiedDestination, index.DeliveryRow | None]
"""Somebody to be told of a revision, and the notice of it that there is already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notices:
    """Notices to the webhooks and mail addresses of the site."""

    settings: Settings
    engine: sa.Engine
    jobs: JobQueue

    def is_notice(self, destination: str) -> bool:
        """Whether what goes to this destination is a notice."""
        peer = next((peer for peer in self.settings.destinations if peer.name == destination), None)
        return isinstance(peer, NotifiedDestination)

    def events_of_report(self, study_instance_uid: str, revision: int) -> set[NoticeEvent]:
        """What a stored report is an event of."""
        return {"report", "urgent"} if self._is_urgent(study_instance_uid, revision) else {"report"}

    def listeners(
        self, study_instance_uid: str, revision: int, events: Collection[NoticeEvent]
    ) -> tuple[Listener, ...]:
        """Who wants to hear of such an event. Those who were told of an earlier revision hear of its amendment, too."""
        applied = index.get_applied_rule(self.engine, study_instance_uid, revision)
        wanted = None if applied is None else applied.destinations
        told = index.list_deliveries(self.engine, study_instance_uid)
        found: list[Listener] = []
        for peer in self.settings.destinations:
            if isinstance(peer, NotifiedDestination) and (wanted is None or peer.name in wanted):
                revisions = {row.revision: row for row in told if row.destination == peer.name}
                amends = "report" in events and any(number < revision for number in revisions)
                if amends or set(events) & set(peer.events):
                    found.append((peer, revisions.get(revision)))
        return tuple(found)

    def queue(
        self, connection: sa.Connection, study_instance_uid: str, revision: int, listeners: Iterable[Listener]
    ) -> None:
        """Have them told, once more where they were; a notice that waits will tell how things stand then."""
        now = time.time()
        for peer, row in listeners:
            key = (study_instance_uid, revision, peer.name)
            if row is None:
                due = ledger.open_delivery(connection, *key, objects=peer.objects, now=now)
            else:
                due = ledger.change_delivery(
                    connection, *key, to=DeliveryState.PENDING, now=now, since=(DeliveryState.DELIVERED,)
                )
            if due:
                attempt = 1 if row is None else row.attempts + 1
                attempts_left = self.settings.delivery_attempts - 1
                self.jobs.submit_delivery(connection, *key, attempt=attempt, attempts_left=attempts_left)

    def queue_parked(
        self, connection: sa.Connection, study_instance_uid: str, revision: int, destination: str | None = None
    ) -> None:
        """Have it told that an analysis failed, or that the delivery to `destination` was given up.

        Not of a notice that did not arrive: two that cannot be reached would tell each other for ever.
        """
        if destination is None or not self.is_notice(destination):
            listeners = self.listeners(study_instance_uid, revision, {"parked"})
            self.queue(connection, study_instance_uid, revision, listeners)

    def send_again_if_changed(self, row: index.DeliveryRow, told: Notice) -> None:
        """Something may have been parked while the notice was on its way, and have found it waiting still."""
        if self.standing(row.study_instance_uid, row.revision) != told:
            listeners = self.listeners(row.study_instance_uid, row.revision, {"parked"})
            with self.engine.begin() as connection:
                this = [(peer, notice) for peer, notice in listeners if peer.name == row.destination]
                self.queue(connection, row.study_instance_uid, row.revision, this)

    def standing(self, study_instance_uid: str, revision: int) -> Notice:
        """What there is to tell of a revision now."""
        report = index.get_report(self.engine, study_instance_uid, revision)
        parked = index.list_deliveries(self.engine, study_instance_uid, state=DeliveryState.PARKED)
        return Notice(
            study_instance_uid=study_instance_uid,
            revision=revision,
            state="failed" if report is None else report.outcome,
            urgent=self._is_urgent(study_instance_uid, revision),
            parked=tuple(sorted(row.destination for row in parked if row.revision == revision)),
        )

    def _is_urgent(self, study_instance_uid: str, revision: int) -> bool:
        record = self.settings.data_dir / result_path(study_instance_uid, revision) / REPORT_NAME
        try:
            return bool(Report.model_validate_json(record.read_bytes()).urgent)
        except (FileNotFoundError, ValidationError):
            return False
