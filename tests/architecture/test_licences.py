"""Everything that is installed with the product may be used by a hospital that pays nobody: no GPL, AGPL or NC."""

import re
import tomllib
from importlib import metadata
from importlib.metadata import Distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import ROOT

REFUSED = re.compile(
    r"\bA?GPL|GNU (Affero )?General Public|\bNC\b|non-?commercial|SSPL|BUSL|proprietary", re.IGNORECASE
)
# "GPL-2.0 OR MIT" leaves the choice; a list of bundled parts has the runtime library exception of GCC in it.
LEAVES_A_CHOICE = re.compile(r"\bOR\b")
GCC_RUNTIME = re.compile(r"GPL-3\.0-or-later WITH GCC-exception-3\.1|GCC runtime library", re.IGNORECASE)


def runtime_closure() -> dict[str, Distribution]:
    """The distributions that an installation with PostgreSQL brings, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["postgres"])]
    found: dict[str, Distribution] = {}
    seen = set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen or not applies(wanted, {""}):
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        found[name] = distribution = metadata.distribution(name)
        needed = [Requirement(line) for line in distribution.requires or ()]
        for requirement in needed:
            if applies(requirement, wanted.extras | {""}):
                requirement.marker = None
                waiting.append(requirement)
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def licence(distribution: Distribution) -> str:
    """What the metadata say, the most exact first: expression, classifiers, first lines of the text."""
    told = distribution.metadata
    if expression := told.get("License-Expression"):
        return str(expression)
    classified = [c.rpartition("::")[2].strip() for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    return "; ".join(classified) or " ".join(str(told.get("License") or "").split()[:12])


def test_no_dependency_is_under_a_licence_that_binds_or_charges_its_user() -> None:
    closure = runtime_closure()
    assert {"pydicom", "torch", "onnxruntime", "bcrypt", "h11", "reportlab", "psycopg-binary"} <= set(closure)
    licences = {name: GCC_RUNTIME.sub("", licence(distribution)) for name, distribution in closure.items()}
    assert [name for name, text in licences.items() if not text] == []
    refused = {n: text for n, text in licences.items() if REFUSED.search(text) and not LEAVES_A_CHOICE.search(text)}
    assert refused == {}


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [("AGPL-3.0-only", True), ("GNU General Public License v3 (GPLv3)", True), ("CC-BY-NC-4.0", True),
     ("GPL-2.0-only", True), ("LGPL-3.0-only", False), ("Apache-2.0", False), ("BSD License", False)],
)  # fmt: skip
def test_what_is_refused(text: str, is_refused: bool) -> None:
    assert bool(REFUSED.search(text)) is is_refused
