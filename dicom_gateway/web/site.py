"""What a request handler needs of the running service: its settings and its database."""

from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Request

from dicom_gateway.errors import NotFound
from dicom_gateway.settings import Settings
from dicom_gateway.store.index import ReportRow, StudyRow, get_report, get_study


@dataclass(frozen=True, slots=True)
class Site:
    """One per application."""

    settings: Settings
    engine: sa.Engine

    def study(self, uid: str) -> StudyRow:
        """The study of this UID. Raises NotFound."""
        found = get_study(self.engine, uid)
        if found is None:
            raise NotFound("No study with this UID was received.")
        return found

    def report_row(self, uid: str, revision: int | None = None) -> ReportRow:
        """The report of a revision, by default the newest. Raises NotFound."""
        found = get_report(self.engine, uid, revision)
        if found is None:
            raise NotFound("There is no such report of this study.")
        return found


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


CurrentSite = Annotated[Site, Depends(_site)]
