"""Try one target of fuzz_targets.py with coverage-guided input: `python tests/fuzz/run.py TARGET [libFuzzer options]`.

For example `python tests/fuzz/run.py association -max_total_time=300`. Wants the extra `fuzz`. An input that makes the
target raise is written as ./crash-...; it becomes a line of test_targets.py.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["imaging", "dicom_gateway", "pydicom", "python_multipart"]):
    from fuzz_targets import TARGETS

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: run.py TARGET [libFuzzer options], where TARGET is one of {', '.join(TARGETS)}")
    target = TARGETS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], target.function)
        atheris.Fuzz()
