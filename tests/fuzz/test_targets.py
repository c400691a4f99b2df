"""Every fuzz target for a moment: its own inputs, damaged as wires and attackers damage them, and bugs of old."""

import pytest
import structlog
from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Inputs that once raised.
FOUND = {
    # A sequence with the VR of a text.
    "commitment_information": [
        b"\x08\x00\x99\x11UI\x06\x001.2.%\x00\x08\x00\x04\x00\x08\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\x00\x061"
        b"\x04\x00\x08\x00\x00\x00\x00\x003\x00\x08\x00U\x01",
        b"\x08\x00\x95\x11UI\x06\x001.2.5\x00\x08\x00\x98\x11US\x02\x00\x01\x00",
    ],
    # A status with the VR of a person's name.
    "performed_step": [b"\x40\x00\x52\x02PN\x0a\x00COMPLETED "],
    # A position, an orientation and a spacing that are no numbers, endless or beyond all measure.
    "series_of_slices": [bytes(16) + odd + bytes(20 * 130 - 17) for odd in (b"\x3f", b"\x7f", b"\xff")],
}


@pytest.fixture(autouse=True)
def logging_as_before():
    """Targets configure logging to notice faults of ours."""
    yield
    structlog.reset_defaults()


@st.composite
def _damaged(draw: st.DrawFn, target: Target) -> bytes:
    content = bytearray(draw(st.sampled_from(target.seeds())))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["cut", "byte", "length", "insert", "remove", "repeat"]))
        if kind == "cut":
            del content[at:]
        elif kind == "byte":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "length":
            extreme = [b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xfe\xff\xff\xff", b"\0\1\0\0"]
            replaced = draw(st.sampled_from(extreme))
            content[at : at + len(replaced)] = replaced
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 40))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes(name: str) -> None:
    target = TARGETS[name]
    for found in (*target.seeds(), *FOUND.get(name, ())):
        target.function(found)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(_damaged(target), st.binary(max_size=400)))
    def no_input_raises(content: bytes) -> None:
        target.function(content)

    no_input_raises()
