"""The direction of imports, and what the light processes must not load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "monai", "onnxruntime", "reportlab", "fhir", "hl7", "httpx")


def test_import_contracts_are_kept() -> None:
    """import-linter finds no import against the layers of `.importlinter`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    run = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "module", ["dicom_gateway.cli", "dicom_gateway.web.app", "dicom_gateway.receive.listener", "dicom_gateway.service"]
)
def test_light_processes_do_not_load_heavy_libraries(module: str) -> None:
    """The listener, the web app and the command line start without the network and without the writers of documents."""
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_an_analysis_loads_nothing_to_train_draw_or_print() -> None:
    """torch and MONAI alone take 5 s: they are loaded beside the reading, not before it."""
    unwanted = ("torch", "monai", "matplotlib", "reportlab", "fhir", "dbos", "uvicorn", "pynetdicom")
    modules = "dicom_gateway.cli, dicom_gateway.analyze"
    code = f"import sys, {modules}; print(*[m for m in {unwanted!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
