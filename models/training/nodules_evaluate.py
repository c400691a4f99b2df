"""Export, calibrate and measure the nodule network: `python -m models.training.nodules_evaluate DATA_ROOT RUN OUT`.

Writes `nodules.onnx` and `nodules.json` into OUT: the manifest's section and the figures behind it. Calibration and
operating points come from nodules put into patients that are held out from training; the figures from other nodules
in another held-out patient, and from the real series with read nodules.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from imaging.geometry import Geometry
from imaging.lungs import Lungs, segment_lungs
from imaging.volume import Volume
from models.manifest import NoduleNetwork
from models.nodules.candidates import cut_patches, find_candidates
from models.nodules.detector import Judged, Nodule, judge_candidates, outline_nodules
from models.training.lesions import Array
from models.training.nodule_network import NoduleNet
from models.training.nodule_scenes import Host, Inserted, Scene, make_scene, read_host
from models.training.nodule_shapes import read_shapes
from models.training.nodules import CHECKPOINT, SHAPES, nodule_at
from models.training.studies import read_volume

WEIGHTS_NAME = "nodules.onnx"
FIGURES_NAME = "nodules.json"
INPUT_NAME = "patches"
_OPSET = 18
CALIBRATION_HOSTS = ("ct/covid_p001",)
TEST_HOST = "ct/normal_001"
REAL = ("ct/nodules_lidc_0063", "ct/normal_001", "ct/covid_p001", "ct/effusion_lung1_024")
_TRUTH = "ct/truth.json"
_COUNTED_MM = 6.0
_MINIMUM_DIAMETER_MM = 4.0
_FALSE_PER_SCAN = 1.0
_LIKELIER_THAN_NOT = 0.5
# Only the three likeliest of the doubtful ones are described.
_ABSENT_FALSE_PER_SCAN = 6.0
_PER_SCENE = 14


class _WholeNet(nn.Module):
    def __init__(self, net: NoduleNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, patches: Tensor) -> Tensor:
        return self.net(patches.float())


def trained_network(run: Path) -> NoduleNet:
    """The network of a run's checkpoint, ready to answer."""
    net = NoduleNet()
    net.load_state_dict(torch.load(run / CHECKPOINT, weights_only=True)["net"])
    return net.eval()


def export(net: NoduleNet, path: Path) -> float:
    """Write the ONNX graph for uint8 patches (n, 2, 24, 24, 24); returns its largest difference from torch."""
    graph = _WholeNet(net).eval()
    sample = torch.randint(0, 256, (8, 2, 24, 24, 24), generator=torch.manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        torch.onnx.export(
            graph,
            (sample,),
            str(path),
            input_names=[INPUT_NAME],
            output_names=["logits"],
            dynamic_axes={INPUT_NAME: {0: "n"}, "logits": {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {INPUT_NAME: sample.numpy()})
        return float(np.abs(found - graph(sample).numpy()).max())


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """Exported weights that answer as `ModelSession.judge` does, before there is a manifest."""

    session: onnxruntime.InferenceSession

    def judge(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (logits,) = self.session.run(None, {INPUT_NAME: patches})
        return np.asarray(logits)


def as_volume(scene: Scene) -> tuple[Volume, Lungs]:
    """A scene as the product would get it: a series of 1 mm; all lung on one side, which nothing here asks for."""
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = affine[3, 3] = 1.0
    z, y, x = scene.hu.shape
    hu = np.clip(np.rint(scene.hu), -1024, 3071).astype(np.int16)
    volume = Volume(hu, Geometry(affine, (z, y, x)), "scene", tuple(map(str, range(z))), (None,) * z)
    nothing = np.zeros(scene.lung.shape, bool)
    return volume, Lungs(body=~nothing, airways=nothing, left=scene.lung, right=nothing)


def scenes(hosts: Sequence[Host], shapes: Sequence[Array], seed: int, count: int) -> Iterator[Scene]:
    """`count` whole thoraces with nodules; every second as the patient was scanned, the others changed at random."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        yield make_scene(hosts[number % len(hosts)], shapes, _PER_SCENE, rng, as_scanned=number // len(hosts) % 2 == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Froc:
    """Nodules of a scan that were there and were described, and what was described for nothing, at one threshold."""

    least_probability: float
    nodules: int
    found: int
    false_per_scan: float


def froc(
    scans: Sequence[tuple[Sequence[Nodule], Sequence[Inserted]]], thresholds: Sequence[float], smallest_mm: float
) -> tuple[Froc, ...]:
    """The curve for nodules from `smallest_mm` up; smaller ones count neither way. Centres are indices at 1 mm."""
    rows = []
    for threshold in thresholds:
        there = hits = false = 0
        for described, truth in scans:
            kept = [n for n in described if n.probability >= threshold]
            hit = [nodule_of(n, truth) for n in kept]
            wanted = [t for t in truth if t.diameter_mm >= smallest_mm]
            there += len(wanted)
            hits += sum(t in hit for t in wanted)
            false += sum(t is None for t in hit)
        rows.append(
            Froc(
                least_probability=round(float(threshold), 4),
                nodules=there,
                found=hits,
                false_per_scan=round(false / max(len(scans), 1), 3),
            )
        )
    return tuple(rows)


def nodule_of(found: Nodule, truth: Sequence[Inserted]) -> Inserted | None:
    """The true nodule a described one belongs to: its centre lies in it, or less than 3 mm off its middle."""
    x, y, z = found.region.centre_mm
    middle = np.array((z, y, x))
    near = [t for t in truth if np.linalg.norm(middle - t.centre) < max(3.0, t.diameter_mm / 2)]
    return min(near, key=lambda t: float(np.linalg.norm(middle - t.centre)), default=None)


def fit_platt(logits: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(temperature, bias) so that sigmoid((logit + bias) / temperature) fits (Platt 1999)."""

    def loss(free: npt.NDArray[np.float64]) -> float:
        scaled = (logits + free[1]) / np.exp(free[0])
        return float(np.mean(np.logaddexp(0.0, np.where(truth, -scaled, scaled))))

    temperature, bias = minimize(loss, np.zeros(2), method="Nelder-Mead").x
    return float(np.exp(temperature)), float(bias)


def calibrated(weights: _Weights, hosts: Sequence[Host], shapes: Sequence[Array], count: int) -> tuple[float, float]:
    """Platt scaling of the candidates of held-out scenes."""
    logits, truth = [], []
    for scene in scenes(hosts, shapes, 11, count):
        index = find_candidates(scene.hu, scene.lung).indices
        logits.append(weights.judge(cut_patches(scene.hu, index)))
        truth.append(np.array([nodule_at(i, scene.nodules) is not None for i in index]))
    return fit_platt(np.concatenate(logits).astype(np.float64), np.concatenate(truth))


def described(
    weights: _Weights, network: NoduleNetwork, volume: Volume, lungs: Lungs, least: float = 0.05
) -> tuple[Nodule, ...]:
    """What would be described at a low threshold."""
    judged: Judged = judge_candidates(weights, network, volume, lungs)
    return outline_nodules(volume, lungs, judged, least, network.minimum_diameter_mm)


def threshold_at(curve: Sequence[Froc], false_per_scan: float) -> float:
    """The lowest threshold of a curve with at most so many false descriptions a scan; else its highest."""
    return next((p.least_probability for p in curve if p.false_per_scan <= false_per_scan), curve[-1].least_probability)


def measure(data: Path, run: Path, out: Path, count: int) -> dict[str, object]:
    """Everything: export, calibrate, choose operating points, measure. Returns what goes into `nodules.json`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / WEIGHTS_NAME
    difference = export(trained_network(run), path)
    weights = _Weights(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    shapes = read_shapes(data / SHAPES)
    hosts = [read_host(data / place) for place in CALIBRATION_HOSTS]
    temperature, bias = calibrated(weights, hosts, shapes, count)
    network = NoduleNetwork(
        weights=WEIGHTS_NAME,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        input=INPUT_NAME,
        minimum_diameter_mm=_MINIMUM_DIAMETER_MM,
        present_probability=1.0,
        absent_probability=0.0,
        temperature=temperature,
        bias=bias,
        chosen_on="-",
    )
    steps = np.round(np.concatenate([np.arange(0.05, 0.1, 0.01), np.arange(0.1, 0.99, 0.02)]), 3)
    fitting = _described(weights, network, scenes(hosts, shapes, 12, count))
    curve = froc(fitting, list(steps), _COUNTED_MM)
    present = max(_LIKELIER_THAN_NOT, threshold_at(curve, _FALSE_PER_SCAN))
    absent = min(present, threshold_at(curve, _ABSENT_FALSE_PER_SCAN))
    names = ", ".join(Path(place).name.split(".")[0] for place in CALIBRATION_HOSTS)
    network = network.model_copy(
        update={
            "present_probability": present,
            "absent_probability": absent,
            "chosen_on": f"{count} thoraces with nodules put into {names}: at most {_FALSE_PER_SCAN:g} false a scan, "
            "and never below one half",
        }
    )
    testing = _described(weights, network, scenes([read_host(data / TEST_HOST)], shapes, 13, count))
    return {
        "network": network.model_dump(),
        "largest_difference_from_torch": difference,
        "calibration": [asdict(p) for p in curve],
        "simulation": [asdict(p) for p in froc(testing, list(steps), _COUNTED_MM)],
        "operating_point": {
            f"from_{mm:g}_mm": asdict(froc(testing, [present], mm)[0])
            for mm in (_MINIMUM_DIAMETER_MM, _COUNTED_MM, 10.0)
        },
        "by_type": _by_type(testing, present),
        "diameter_mm": _diameters(testing, present),
        "real": [real_series(weights, network, data, place) for place in REAL],
    }


def _described(
    weights: _Weights, network: NoduleNetwork, made: Iterator[Scene]
) -> list[tuple[tuple[Nodule, ...], tuple[Inserted, ...]]]:
    scans = []
    for scene in made:
        scans.append((described(weights, network, *as_volume(scene)), scene.nodules))
        print(f"scan {len(scans)}: {len(scans[-1][0])} outlined, {len(scene.nodules)} put in", flush=True)
    return scans


def _by_type(
    scans: Sequence[tuple[Sequence[Nodule], Sequence[Inserted]]], least: float
) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for kind in sorted({t.type for _, truth in scans for t in truth}):
        there = [(found, t) for found, truth in scans for t in truth if t.type == kind and t.diameter_mm >= _COUNTED_MM]
        of = [[n.type for n in found if n.probability >= least and nodule_of(n, [t])] for found, t in there]
        named = [str(types[0]) for types in of if types]
        rows[kind] = {
            "nodules": len(there),
            "found": len(named),
            "called": {name: named.count(name) for name in sorted(set(named))},
        }
    return rows


def _diameters(scans: Sequence[tuple[Sequence[Nodule], Sequence[Inserted]]], least: float) -> dict[str, float]:
    """Mean axial diameter of what was found minus that of what was put in."""
    errors = []
    for found, truth in scans:
        for nodule in found:
            hit = nodule_of(nodule, truth)
            if hit is not None and nodule.probability >= least and hit.diameter_mm >= _MINIMUM_DIAMETER_MM:
                errors.append(nodule.mean_diameter_mm - hit.axial_mm)
    values = np.array(errors or [np.nan])
    return {
        "n": len(errors),
        "bias": round(float(values.mean()), 2),
        "standard_deviation": round(float(values.std()), 2),
        "median_absolute": round(float(np.median(np.abs(values))), 2),
        "within_2_mm": round(float(np.mean(np.abs(values) <= 2.0)), 3),
    }


def real_series(weights: _Weights, network: NoduleNetwork, data: Path, place: str) -> dict[str, object]:
    """What is described in a real series, and which of its read nodules are among it."""
    volume = read_volume(data / place)
    found = described(weights, network, volume, segment_lungs(volume))
    truth = json.loads((data / _TRUTH).read_text())[Path(place).name]["truth"].get("nodules", [])
    rows = []
    for nodule in sorted(found, key=lambda one: -one.probability):
        near = [
            number
            for number, one in enumerate(truth)
            if np.linalg.norm(np.subtract(nodule.region.centre_mm, one["centre_lps_mm"])) < one["diameter_mm"] / 2 + 1
        ]
        rows.append(
            {
                "probability": round(nodule.probability, 3),
                "described": nodule.probability >= network.present_probability,
                "centre_mm": [round(c, 1) for c in nodule.region.centre_mm],
                "mean_diameter_mm": round(nodule.mean_diameter_mm, 1),
                "type": str(nodule.type),
                "read_as": near[0] if near else None,
            }
        )
    return {"series": Path(place).name, "read_nodules": len(truth), "found": rows[:25]}


def read_network(folder: Path) -> NoduleNetwork:
    """The manifest's section for the `nodules.onnx` of a folder that `measure` wrote.

    Raises OSError or ValueError naming the file.
    """
    path = folder / FIGURES_NAME
    try:
        return NoduleNetwork.model_validate(json.loads(path.read_text())["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no network for nodules") from error


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.data, arguments.run, arguments.out, arguments.scenes)
    (arguments.out / FIGURES_NAME).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
