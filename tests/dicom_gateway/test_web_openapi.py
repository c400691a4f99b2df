"""The OpenAPI document is true: requests made from it are answered as it says, and none with a server error."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from web_samples import deliver, fail, open_site, publish, receive, sample_report, serving, site_settings

from dicom_gateway.store.schema import DeliveryState
from dicom_gateway.web.app import create_app

REPORTED, FAILED = "1.2.3.1", "1.2.3.2"
HEADERS = {"X-OneScan-Request": "1"}
STORE = r"^/dicom-web/studies(/\{study\})?$"
bounded = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@schemathesis.serializer("multipart/related")
def as_it_stands(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Bodies that are hardly ever a multipart message."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of a site with a report, a parked delivery and a failed study, which takes uploads."""
    given = site_settings(tmp_path_factory.mktemp("site"), stow_networks=("127.0.0.0/8",), minimum_free_space_mb=0)
    engine = open_site(given)
    receive(engine, REPORTED, count=3)
    publish(given, engine, sample_report(REPORTED))
    deliver(engine, REPORTED, "pacs", DeliveryState.PARKED, attempts=8, last_error="connection refused")
    receive(engine, FAILED)
    fail(engine, FAILED, "InconsistentSeries")
    engine.dispose()
    with serving(create_app(given)) as client:
        yield schemathesis.openapi.from_url(str(client.base_url.join("/api/openapi.json")))


def ask(operations: Any, **validation: Any) -> list[str]:
    """Ask every operation some things its schema allows and some it does not; what was asked, as labels."""
    asked = []
    for found in operations.get_all_operations():
        operation = found.ok()

        @bounded
        @given(operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def one_operation(case: schemathesis.Case) -> None:
            if len(case.path_parameters.get("uid", "")) % 2:
                case.path_parameters["uid"] = REPORTED
            case.call_and_validate(headers=HEADERS, **validation)

        one_operation()
        asked.append(operation.label)
    return asked


def test_requests_are_answered_as_documented(document: Any) -> None:
    # Health is 503 here, where no worker runs: the document says so, and the check cannot know that it is meant.
    asked = ask(document.exclude(path="/api/health").exclude(method="POST", path_regex=STORE))
    assert {"GET /api/studies/{uid}", "POST /api/studies/{uid}/replay", "GET /dicom-web/studies"} <= set(asked)


def test_a_body_that_is_nothing_is_refused_as_documented(document: Any) -> None:
    # A multipart message is more than a schema can tell.
    stores = document.include(method="POST", path_regex=STORE)
    assert len(ask(stores, excluded_checks=[positive_data_acceptance])) == 2
