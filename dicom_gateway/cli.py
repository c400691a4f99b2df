"""The command `onescan`."""

import gc
import importlib.util
import os
import re
import signal
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.settings import Settings
from models import BUNDLED_MODEL_DIR
from models.errors import ModelError

USAGE_ERROR = 2
# Phantoms that neither training nor calibration uses, to compare a variant's answers on.
_VARIANT_SEED, _VARIANT_STUDIES = 7_000, 4
_RESEARCH = "[bold red]Research use only. Not a medical device.[/]"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Reads a chest CT once and reports every finding it can.\n\n"
    + _RESEARCH
    + "\n\nStart with [bold]onescan demo[/]: it sends a phantom study through the real DICOM port and shows the report."
    " Then [bold]onescan analyze FOLDER --out RESULTS[/] for files, or [bold]onescan serve[/] beside a PACS.",
)
out = Console()
# An error is one line wherever it goes: a log that is searched by line, or a terminal that wraps it itself.
err = Console(stderr=True, soft_wrap=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; default ./onescan.toml if it exists. ONESCAN_* variables win."),
]


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit when the report is back: 0 if it agrees.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the phantom patient.")] = 9,
) -> None:
    """Send a phantom study through the real DICOM port and compare the report that comes back with the truth.

    Starts a small receiving PACS, the listener, the worker and the web page on free loopback ports with a
    temporary data folder. Nothing outside this machine is contacted.
    """
    from dicom_gateway.demo import run_demo

    raise typer.Exit(run_demo(out, once=once, seed=seed))


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the service: DICOM listener, worker and web page, until stopped."""
    from dicom_gateway.service import serve as run_service

    raise typer.Exit(run_service(Settings.load(config)))


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders, DICOMDIR or zip archives.", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for results, one subfolder a study.")],
    config: ConfigOption = None,
) -> None:
    """Analyse studies from files, without service or database.

    Each study gives [bold]OUT/<StudyInstanceUID>/[/] with report.json, findings.sr.dcm, summary.sc.dcm,
    segments.seg.dcm and key images; all findings together stand in [bold]OUT/findings.csv[/].

    Exit code 0: all reported. 1: some refused or failed, or something given could not be opened. 2: wrong usage.
    """
    settings = Settings.load(config)
    if missing := [path for path in paths if not os.path.lexists(path)]:
        err.print(f"[red]No such file or folder:[/] {_plain(', '.join(map(str, missing)))}", highlight=False)
        raise typer.Exit(USAGE_ERROR)
    _check_writable(out_dir)
    # Ended as by Ctrl-C: what was unpacked of patients goes.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="onescan-") as unpacked:
        raise typer.Exit(_analyze(paths, out_dir, Path(unpacked), settings))


def _analyze(paths: list[Path], out_dir: Path, unpacked: Path, settings: Settings) -> int:
    from imaging.files import find_files
    from imaging.headers import read_studies
    from imaging.preprocess import preload

    # Hundreds of thousands of objects of the libraries would be walked again and again while they load.
    gc.disable()
    preload()
    with _progress() as progress:
        reading = progress.add_task("reading headers", total=None)
        found = find_files(paths, unpacked)
        progress.update(reading, total=len(found.files))
        studies, unreadable = read_studies(found.files, lambda _: progress.advance(reading))
        for file in found.missed:
            progress.console.print(f"[red]not read[/] {_plain(str(file.path))}: {_plain(file.reason)}", highlight=False)
        for file in unreadable:
            name = file.path.relative_to(unpacked) if file.path.is_relative_to(unpacked) else file.path
            progress.console.print(f"[yellow]skipped[/] {_plain(str(name))}: {_plain(file.reason)}", highlight=False)
        if not studies:
            where = _plain(", ".join(map(str, paths)))
            err.print(f"[red]No DICOM study found[/] in {where} ({len(found.files)} files looked at).")
            return 1
        session = _session(settings)
        from dicom_gateway.analyze import FINDINGS_TABLE, analyze_studies, findings_table
        from models.detect import Detector

        task = progress.add_task("analysing", total=len(studies))
        ended = reported = 0
        try:
            with findings_table(out_dir / FINDINGS_TABLE) as add:
                for study in analyze_studies(
                    studies,
                    out_dir,
                    Detector(session),
                    unreadable_files=[file.path for file in unreadable],
                    on_stage=lambda stage: progress.update(task, description=f"analysing: {stage}"),
                ):
                    add(study)
                    colour = {"reported": "green", "refused": "yellow", "failed": "red"}[study.outcome]
                    progress.console.print(f"[bold {colour}]{study.outcome}[/] {study.study_instance_uid}")
                    for line in study.headline or filter(None, (study.problem,)):
                        progress.console.print(f"  {_plain(line)}", highlight=False)
                    ended += 1
                    reported += study.outcome == "reported"
                    progress.advance(task)
                    if ended < len(studies):
                        gc.collect()
        except OSError as error:
            raise _stopped(f"{out_dir / FINDINGS_TABLE} cannot be written", error, 1) from error
    gc.freeze()
    out.print(f"{reported} of {ended} studies reported into {_plain(str(out_dir))}. {_RESEARCH}")
    if found.missed:
        err.print(f"[red]{len(found.missed)} of what was given could not be read:[/] see above.")
    return 0 if reported == ended and not found.missed else 1


def _plain(text: str) -> str:
    """Text of headers and file names for the terminal: no markup of ours, nothing that steers a terminal."""
    return escape("".join(character if character.isprintable() else "?" for character in text))


def _session(settings: Settings):  # type: ignore[no-untyped-def]  # naming the type would import onnxruntime
    from models.session import ModelSession

    try:
        return ModelSession.open(
            settings.model_dir, settings.execution_provider, threads=settings.inference_threads or None
        )
    except ModelError as error:
        raise _stopped("The model cannot be used", error, USAGE_ERROR) from error


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder for the DICOM files and truth.json.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed is another patient.")] = 1,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="KIND=SIZE, e.g. pleural_effusion=300 (ml) or left:pulmonary_nodule=12 (mm); repeatable."),
    ] = None,
    contrast: Annotated[bool, typer.Option(help="With intravenous contrast.")] = False,
    slice_spacing_mm: Annotated[float, typer.Option(min=0.5, max=5.0, help="Distance between slices, mm.")] = 2.0,
) -> None:
    """Write a synthetic chest CT with chosen findings as DICOM files, and the truth beside it."""
    from imaging.phantom import LesionRequest, make_phantom
    from imaging.phantom_dicom import write_phantom, write_truth

    try:
        requests = [_requested(text, LesionRequest) for text in finding or ()]
        with _progress() as progress:
            progress.add_task("making the phantom", total=None)
            made = make_phantom(seed, requests, spacing_mm=(slice_spacing_mm, 0.7, 0.7), contrast=contrast)
            writing = progress.add_task("writing", total=made.volume.hu.shape[0])
            files = write_phantom(made, folder, on_slice=lambda *_: progress.advance(writing))
    except ValueError as error:
        err.print(f"[red]{error}[/]")
        raise typer.Exit(USAGE_ERROR) from error
    write_truth(made, folder / "truth.json")
    out.print(f"{len(files)} images and truth.json in {folder}")


def _requested(text: str, request):  # type: ignore[no-untyped-def]
    """KIND=SIZE or SIDE:KIND=SIZE."""
    kind, separator, size = text.partition("=")
    side, _, named = kind.rpartition(":")
    try:
        return request(kind=named, size=float(size), laterality=side or None)
    except ValueError as error:
        what = "SIZE must be a number" if separator else "write KIND=SIZE"
        raise ValueError(f"--finding {text}: {what}") from error


@app.command()
def evaluate(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for figures; the same folder resumes.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Index files (TOML), or folders of studies with truth.json beside them."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder; default the configured model.")] = None,
    simulate: Annotated[int, typer.Option(min=0, help="So many phantoms with all kinds of findings.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other simulations.")] = 1,
    hosts: Annotated[
        Path | None,
        typer.Option(
            help="Training configuration: with --simulate, as many studies with lesions of all kinds put into its "
            "held-out patients, and as many with nodules."
        ),
    ] = None,
    write_evidence: Annotated[
        bool, typer.Option("--write-evidence", help="Write grades, figures and withheld kinds into model.json.")
    ] = False,
    card: Annotated[Path | None, typer.Option(help="Model card whose tables --write-evidence writes, too.")] = None,
    config: ConfigOption = None,
) -> None:
    """Compare a model's answers with what is known about studies: rates with intervals, agreement, FROC, calibration.

    Writes [bold]evaluation.html[/], figures.csv, answers.csv, measurements.csv and evaluation.json. The format of truth
    files stands in [bold]models/evaluation/truth.py[/]; the truth.json of [bold]onescan phantom[/] is one, too.

    Exit code 0: all studies evaluated. 1: some refused or failed, or nothing measured to be written. 2: wrong usage.
    """
    from models.evaluation.card import check_marks
    from models.evaluation.truth import UnreadableTruth, find_labelled_studies

    settings = Settings.load(config)
    if model is not None:
        settings = settings.model_copy(update={"model_dir": model})
    if card is not None and not write_evidence:
        err.print("[red]--card is written with --write-evidence only.[/]")
        raise typer.Exit(USAGE_ERROR)
    if hosts is not None and not simulate:
        err.print("[red]--hosts needs --simulate N:[/] as many studies are made of its patients.")
        raise typer.Exit(USAGE_ERROR)
    named = (*(paths or ()), *(path for path in (hosts, card) if path is not None))
    if missing := [path for path in named if not path.exists()]:
        err.print(f"[red]No such file or folder:[/] {', '.join(map(str, missing))}")
        raise typer.Exit(USAGE_ERROR)
    for folder in (out_dir, *([settings.model_dir] if write_evidence else []), *([card.parent] if card else [])):
        _check_writable(folder)
    try:
        labelled = find_labelled_studies(paths or ())
    except UnreadableTruth as error:
        err.print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(USAGE_ERROR) from error
    if not labelled and not simulate:
        err.print("[red]Nothing to evaluate:[/] name an index file or a folder with truth.json, or say --simulate N.")
        raise typer.Exit(USAGE_ERROR)
    from dicom_gateway.evaluate import MOST_INSERTED, inserted_cases, labelled_case, phantom_cases

    if hosts is not None and simulate > MOST_INSERTED:
        err.print(f"[red]--simulate with --hosts goes up to {MOST_INSERTED}:[/] another --seed makes others.")
        raise typer.Exit(USAGE_ERROR)
    cases = [*map(labelled_case, labelled), *phantom_cases(simulate, seed)]
    if card is not None:
        try:
            check_marks(card)
        except (OSError, ValueError) as error:
            raise _stopped(f"{card} cannot be used", error, USAGE_ERROR) from error
    if hosts is not None:
        try:
            cases += inserted_cases(hosts, simulate, seed)
        except (OSError, ValueError) as error:
            raise _stopped(f"{hosts} cannot be used", error, USAGE_ERROR) from error
    raise typer.Exit(_evaluate(cases, out_dir, settings, write_evidence=write_evidence, card=card))


def _evaluate(cases, out_dir: Path, settings: Settings, *, write_evidence: bool, card: Path | None) -> int:  # type: ignore[no-untyped-def]
    from dicom_gateway.evaluate import (
        NothingMeasured,
        answering_everything,
        evaluate_cases,
        training_doubts,
        write_evidence_into,
    )
    from models.evaluation.page import PAGE_NAME, write_page
    from models.evaluation.tables import write_tables

    detector = answering_everything(_session(settings))
    for doubt in training_doubts(cases, detector.manifest):
        err.print(f"[yellow]check[/] {escape(doubt)}", highlight=False)
    records = []
    with _progress() as progress:
        task = progress.add_task("evaluating", total=len(cases))
        for record in evaluate_cases(
            cases,
            detector,
            out_dir / "studies",
            on_stage=lambda stage: progress.update(task, description=f"evaluating: {stage}"),
        ):
            if record.outcome != "evaluated":
                said = f"[yellow]{record.outcome}[/] {_plain(record.name)}: {_plain(record.problem or '')}"
                progress.console.print(said, highlight=False)
            records.append(record)
            progress.advance(task)
    write_tables(records, detector.manifest, out_dir)
    write_page(records, detector.manifest, out_dir)
    if write_evidence:
        try:
            manifest = write_evidence_into(settings.model_dir, records, card)
        except NothingMeasured as error:
            err.print(f"[red]No evidence written:[/] {error}. {settings.model_dir} stays as it is.")
            return 1
        out.print(f"Evidence of {len(manifest.evidence)} kinds written into {settings.model_dir}.")
    evaluated = sum(record.outcome == "evaluated" for record in records)
    out.print(f"{evaluated} of {len(records)} studies evaluated: {out_dir / PAGE_NAME}. {_RESEARCH}")
    return 0 if evaluated == len(records) else 1


@app.command()
def train(
    training: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration of the run (TOML).")],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run: checkpoint, progress.csv, progress.svg.")],
    threads: Annotated[int, typer.Option(min=1, help="Processor threads for the network.")] = 2,
) -> None:
    """Train a network, or go on where the run's folder stopped; on the GPU where torch has one.

    The configuration mixes phantoms, real volumes with inserted lesions, painted organ maps and labelled volumes of
    one's own: see [bold]models/training/own.toml[/] and [bold]models/training/labelled.py[/].

    Exit code 0: the run has its steps. 1: the loss became no number, or the GPU is too small. 2: wrong usage.
    """
    _need_onnx()
    from models.training.dataset import read_config, read_sources
    from models.training.start import exported_network
    from models.training.train import UnusableCheckpoint, is_emulated, steps_done, use_threads
    from models.training.train import train as run_training

    following = f"Next: onescan export {training} {run} --real INDEX --out FOLDER. {_RESEARCH}"
    try:
        config = read_config(training)
        if (done := steps_done(run)) >= config.steps:
            out.print(f"{run} has {done} steps and {config.steps} were asked for: nothing to train. {following}")
            return
        if is_emulated(config.precision):
            err.print(f'[yellow]This processor has no {config.precision}: precision = "float32" is faster here.[/]')
        if not done and config.start_from is not None:
            # Reading and making what is trained on may take half an hour.
            exported_network(config.start_from, config.features)
        run.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            progress.add_task("reading volumes and making phantoms", total=None)
            sources = read_sources(config)
    except (ModelError, OSError, ValueError) as error:
        raise _stopped("Cannot train", error, USAGE_ERROR) from error
    use_threads(threads)
    try:
        with _progress() as progress:
            task = progress.add_task("training", total=config.steps, completed=done)
            run_training(
                config,
                sources,
                run,
                lambda now: progress.update(
                    task,
                    completed=now.step,
                    description=f"training: loss of anatomy {now.anatomy:.3f}, of lesions {now.lesions:.3f}",
                ),
            )
    except UnusableCheckpoint as error:
        raise _stopped("Cannot train", error, USAGE_ERROR) from error
    except (FloatingPointError, MemoryError) as error:
        raise _stopped("Training has stopped", error, 1) from error
    out.print(f"{config.steps} steps: {run}. {following}")


@app.command()
def export(
    training: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration of the run (TOML).")],
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Model folder: model.onnx and model.json.")],
    index: Annotated[
        Path, typer.Option("--real", help="Index of labelled real studies, which operating points keep clean.")
    ],
    version: Annotated[str, typer.Option(help="Version of the model.")] = "0",
    nodules: Annotated[
        Path,
        typer.Option(help="Model folder whose network for nodules goes along.", show_default="the bundled model"),
    ] = BUNDLED_MODEL_DIR,
    variant: Annotated[str | None, typer.Option(help="int8 or bf16 storage, taken if the answers stay.")] = None,
    simulate: Annotated[int, typer.Option(min=4, help="Simulated studies to calibrate on.")] = 24,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads for the network.")] = 2,
) -> None:
    """Write a run's network as a model folder: ONNX compared with torch, calibrated, cut at operating points.

    Nodules are found by a second network, which a run does not train: that of the bundled model goes along.
    Afterwards [bold]onescan evaluate --model FOLDER --write-evidence[/] measures what it is worth.
    """
    if variant not in (None, "int8", "bf16"):
        err.print(f"[red]--variant is int8 or bf16, not {variant}.[/]")
        raise typer.Exit(USAGE_ERROR)
    if missing := [path for path in (training, run, index) if not path.exists()]:
        err.print(f"[red]No such file or folder:[/] {', '.join(map(str, missing))}")
        raise typer.Exit(USAGE_ERROR)
    _check_writable(out_dir)
    _need_onnx()
    from models.training.bundle import write_bundle
    from models.training.dataset import read_config
    from models.training.studies import phantom_studies
    from models.training.train import use_threads
    from models.training.variants import adopt_variant

    use_threads(threads)
    with _progress() as progress:
        progress.add_task("exporting, calibrating and comparing", total=None)
        try:
            config = read_config(training)
            manifest = write_bundle(config, index, run, out_dir, version, simulate, nodules)
        except (ModelError, OSError, ValueError) as error:
            raise _stopped("Cannot export", error, USAGE_ERROR) from error
        if variant is not None:
            grids = [study.hu for study in phantom_studies(config, _VARIANT_SEED, _VARIANT_STUDIES)]
            loss, taken = adopt_variant(out_dir, variant, grids, threads)  # type: ignore[arg-type]
            verdict = "taken" if taken else "not taken: float32 stays"
            progress.console.print(f"{variant} {verdict}. {loss}", highlight=False)
    out.print(f"{manifest.name} {manifest.version} in {out_dir}, network for nodules from {nodules}. {_RESEARCH}")


@app.command("model")
def show_model(
    folder: Annotated[Path | None, typer.Argument(help="Model folder; default the configured model.")] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help="What stands behind each answer, with figures.")] = False,
    config: ConfigOption = None,
) -> None:
    """Name, version and digest of the model; with --evidence what was measured about each of its answers."""
    from dicom_gateway.evidence import known_about
    from models.errors import ManifestMismatch
    from models.manifest import load_manifest

    try:
        manifest = load_manifest(folder or Settings.load(config).model_dir)
    except ManifestMismatch as error:
        err.print(f"[red]The model cannot be used:[/] {error}")
        raise typer.Exit(USAGE_ERROR) from error
    out.print(f"{manifest.name} {manifest.version}, SHA-256 {manifest.sha256}", highlight=False, soft_wrap=True)
    known = known_about(manifest)
    if not evidence:
        out.print(f"{sum(kind.status == 'answered' for kind in known)} of {len(known)} kinds answered. {_RESEARCH}")
        return
    for kind in known:
        grade = f", evidence {kind.grade}" if kind.grade else ""
        out.print(f"[bold]{kind.title}[/]{grade}, {kind.status}{f': {kind.reason}' if kind.reason else ''}")
        for row in kind.rows:
            trial = row.trial
            rates = f"sensitivity {row.sensitivity}, specificity {row.specificity}, AUROC {row.auroc}"
            lines = [f"  {row.data}: {trial.positive} with, {trial.negative} without; {rates}"]
            if trial.indeterminate or trial.not_assessed:
                lines.append(f"    {trial.indeterminate} undecided, {trial.not_assessed} not assessed")
            lines += [f"    {line}" for line in (trial.note, *row.details) if line]
            out.print("\n".join(lines), soft_wrap=True)
    out.print(f"Intervals are of 95 %. {_RESEARCH}")


@app.command()
def doctor(config: ConfigOption = None) -> None:
    """Check ports, disk, database, model and destinations. Exit code 1 when something is wrong."""
    from dicom_gateway.operate import doctor as run_checks

    checks = run_checks(Settings.load(config))
    table = Table("check", "", "detail", "what to do")
    for check in checks:
        table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", check.detail, check.advice or "")
    out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def password(
    name: Annotated[str, typer.Argument(help="Name to log in with.", show_default=False)],
    vouches_as: Annotated[
        str | None,
        typer.Option(help="Who this is, as in DICOM: Family^Given; may then vouch for reports.", metavar="NAME"),
    ] = None,
    organization: Annotated[str | None, typer.Option(help="Organisation of that person.", metavar="NAME")] = None,
) -> None:
    """Ask for a password and print the line of web_users_file for it: [bold]onescan password NAME >> FILE[/]."""
    from dicom_gateway.users import Person, hash_line

    try:
        if (vouches_as is None) is not (organization is None):
            raise ValueError("--vouches-as and --organization belong together")
        person = None if vouches_as is None else Person(vouches_as, organization or "")
        line = hash_line(name, typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True), person)
    except ValueError as error:
        err.print(f"[red]{error}[/]", highlight=False)
        raise typer.Exit(USAGE_ERROR) from error
    print(line)


@app.command()
def status(config: ConfigOption = None) -> None:
    """Studies, deliveries and parked jobs of the service."""
    from dicom_gateway.operate import print_status

    print_status(Settings.load(config), out)


@app.command()
def rules(
    since: Annotated[
        str, typer.Option(help="How far to look back, by a study's last image: 12h, 7d, 4w ...", metavar="TIME")
    ] = "7d",
    config: ConfigOption = None,
) -> None:
    """What the rules would have done with the studies that are stored. Nothing is changed.

    Try other rules in a copy of the settings file: [bold]onescan rules --config COPY[/].
    """
    from dicom_gateway.dry_run import tally
    from dicom_gateway.operate import try_rules
    from dicom_gateway.report.wording import rule_conditions, rule_outcome

    settings = Settings.load(config)
    beginning = datetime.now(UTC) - _period(since)
    with _progress() as progress:
        task = progress.add_task("reading headers", total=None)
        trials = try_rules(settings, beginning, lambda done, total: progress.update(task, completed=done, total=total))
    table = Table("last image", "study", "sender", "body part", "rule", "would be", "is")
    for trial in trials:
        study = trial.study
        table.add_row(
            f"{study.last_received.astimezone():%Y-%m-%d %H:%M}",
            Text(study.study_instance_uid, overflow="fold"),
            Text(study.calling_ae_title),
            Text(", ".join(sorted(filter(None, trial.traits.body_part)))),
            trial.rule.name if trial.rule else "none",
            rule_outcome(trial.rule),
            study.state.value,
        )
    if trials:
        out.print(table)
    totals = Table("rule", "when", "studies", "would be")
    for rule, number in tally(settings.rules, trials):
        name, when = (rule.name, Text(rule_conditions(rule))) if rule else ("none", "no rule fits")
        totals.add_row(name, when, str(number), rule_outcome(rule))
    out.print(totals)
    out.print(f"{len(trials)} studies since {beginning.astimezone():%Y-%m-%d %H:%M}.", highlight=False)


def _period(text: str) -> timedelta:
    told = re.fullmatch(r"(\d{1,4})([hdw])", text.strip())
    if told is None:
        err.print(f"[red]--since {escape(text)}:[/] write a number and h, d or w, for example 7d.")
        raise typer.Exit(USAGE_ERROR)
    return timedelta(**{{"h": "hours", "d": "days", "w": "weeks"}[told[2]]: int(told[1])})


@app.command()
def replay(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A job id as `onescan status` shows it, or a Study Instance UID, also of a study that a rule excludes."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is parked.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Analyse a study that has its report once more, as with a new model.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Start parked work again: one job, all parked jobs of a study, or everything that is parked.

    With --again: another revision of a report that is out, which supersedes it and goes to its destinations.
    """
    from dicom_gateway.errors import NotFound, StudyHasChanged
    from dicom_gateway.operate import analyse_again, kept_parked
    from dicom_gateway.operate import replay as replay_parked

    if (what is None) is not everything or (again and what is None):
        err.print("[red]Name a job or a study, or say --all.[/] See `onescan status`.")
        raise typer.Exit(USAGE_ERROR)
    if again and what is not None:
        try:
            revision = analyse_again(Settings.load(config), what)
        except (NotFound, StudyHasChanged) as error:
            err.print(f"[red]{escape(str(error))}[/]", highlight=False)
            raise typer.Exit(1) from error
        out.print(f"queued: revision {revision}")
        return
    settings = Settings.load(config)
    replayed, kept = replay_parked(settings, what), kept_parked(settings, what)
    for job in replayed:
        out.print(f"started again: {job}")
    for reason in kept:
        err.print(f"[red]{escape(reason)}[/]", highlight=False)
    if not replayed and not kept:
        err.print(f"[red]Nothing parked{f' under {what}' if what else ''}.[/] See `onescan status`.")
    if not replayed:
        raise typer.Exit(1)


@app.command()
def verify(
    study: Annotated[str, typer.Argument(help="Study Instance UID.", metavar="STUDY")],
    by: Annotated[str, typer.Option(help="Name of the person who read it, as in DICOM: Family^Given.", metavar="NAME")],
    organization: Annotated[str, typer.Option(help="Organisation of that person.", metavar="NAME")],
    present: Annotated[
        list[str] | None,
        typer.Option(help="What is present against the report: a kind, or KIND:N for its lesion N.", metavar="KIND"),
    ] = None,
    absent: Annotated[list[str] | None, typer.Option(help="What is absent against it.", metavar="KIND")] = None,
    comment: Annotated[
        str | None, typer.Option(help="Something in the person's own words, on one line.", metavar="TEXT")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Vouch for the newest report of a study, as a person who has read the study: a new, verified revision.

    What is not named is confirmed as it stands. Kinds are named as in report.json: pleural_effusion,
    pulmonary_nodule:2. The automated report is kept; the verified one goes to its destinations.
    """
    from pydantic import ValidationError

    from dicom_gateway.errors import NotFound, StudyHasChanged
    from dicom_gateway.report.content import Verification
    from dicom_gateway.report.headline import headline
    from dicom_gateway.report.verification import ContradictoryVerdict, read_question
    from dicom_gateway.verify import verify_study

    settings = Settings.load(config)
    try:
        stated = {read_question(text): "present" for text in present or ()}
        stated |= {read_question(text): "absent" for text in absent or ()}
        if len(stated) < len(present or ()) + len(absent or ()):
            raise ContradictoryVerdict("something is named twice")
        verification = Verification(observer_name=by, organization=organization, comment=comment)
        report = verify_study(settings, study, verification, stated)  # type: ignore[arg-type]
    except ValidationError as error:
        err.print(
            "[red]--by, --organization:[/] up to 64 characters without backslash; [red]--comment:[/] 500, one line."
        )
        raise typer.Exit(USAGE_ERROR) from error
    except (ContradictoryVerdict, NotFound, StudyHasChanged) as error:
        err.print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(USAGE_ERROR if isinstance(error, ContradictoryVerdict) else 1) from error
    for line in headline(report):
        out.print(line, highlight=False, markup=False)
    out.print(f"Revision {report.revision}, verified by {by}; queued for its destinations.", markup=False)


def _need_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        err.print("[red]onnx is not installed:[/] pip install 'onescan\\[train]'")
        raise typer.Exit(USAGE_ERROR)


def _check_writable(folder: Path) -> None:
    """Exit before the work where its results could not be written; the folder need not be there yet."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        err.print(f"[red]Cannot write to {escape(str(folder))}:[/] {error.strerror}", highlight=False)
        raise typer.Exit(USAGE_ERROR) from error


def _stopped(what: str, error: Exception, code: int) -> typer.Exit:
    err.print(f"[red]{escape(what)}:[/] {_plain(str(error))}", highlight=False)
    return typer.Exit(code)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )


def main() -> None:
    """Entry point of the console script."""
    # MONAI and torch talk on import; a user sees only what we say.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
    try:
        app()
    except ConfigurationError as error:
        err.print(f"[red]{error}[/]")
        sys.exit(USAGE_ERROR)
