"""Templates to answers: the one Jinja environment, its words and numbers, and the page of an error."""

import importlib.metadata
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from dicom_gateway.report.content import DISCLAIMER
from dicom_gateway.report.wording import (
    PHASE_NAMES,
    PRESENCE_NAMES,
    excluded_in_words,
    finding_title,
    format_number,
    outcome_in_words,
    place,
    rule_conditions,
    rule_outcome,
)
from dicom_gateway.web import wording

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "contrast_phase": PHASE_NAMES.__getitem__,
    "day": wording.day,
    "delivery_state": wording.delivery_state,
    "excluded": excluded_in_words,
    "finding_title": finding_title,
    "format_number": format_number,
    "kind": wording.kind,
    "moment": wording.moment,
    "number": wording.number,
    "outcome": outcome_in_words,
    "person": wording.person,
    "place": place,
    "priority": wording.priority,
    "quantity": wording.quantity,
    "replay_url": wording.replay_url,
    "rule_conditions": rule_conditions,
    "rule_outcome": rule_outcome,
    "sentence": wording.sentence,
    "size": wording.size,
    "study_state": wording.study_state,
}


def software_version() -> str:
    """Of the installed distribution; a source tree that was never installed has none."""
    try:
        return importlib.metadata.version("onescan")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


_environment.globals |= {
    "delivery_states": wording.DELIVERY_STATES,
    "disclaimer": DISCLAIMER,
    "evidence_grades": wording.EVIDENCE_GRADES,
    "presence_names": PRESENCE_NAMES,
    "software_version": software_version(),
    "study_states": wording.STUDY_STATES,
    "verdict_choices": wording.VERDICT_CHOICES,
}


def render(request: Request, template: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """The page `template` filled with `values`, everything escaped."""
    text = _environment.get_template(template).render(here=request.url.path, **values)
    return HTMLResponse(text, status)


def render_problem(request: Request, status: HTTPStatus, detail: str) -> HTMLResponse:
    """The page that says why another one cannot be shown."""
    return render(request, "error.html", status, title=status.phrase, detail=detail)
