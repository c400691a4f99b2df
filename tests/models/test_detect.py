"""From voxels to findings in the patient, with a network whose answer is known: what is bright is a nodule.

The network is a real ONNX graph run by onnxruntime, so that everything around it is tested: the grid, the way back,
sides, outlines, measurements, the answer about the study.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from imaging.geometry import Geometry
from imaging.lungs import Lungs, segment_lungs
from imaging.phantom import ANATOMY
from imaging.preprocess import prepare
from imaging.volume import Volume
from models.agreement import averaged
from models.detect import Detector, unfamiliar
from models.findings import FindingKind, Laterality, Presence, Quantity
from models.manifest import Familiarity, ModelManifest, NoduleNetwork
from models.measured import RULES
from models.session import HeadOutputs, ModelSession

BRIGHT_HU = 150.0
RADIUS_MM = 12.0
NODULES = NoduleNetwork(
    weights="none.onnx",
    sha256="0" * 64,
    input="patches",
    minimum_diameter_mm=4.0,
    present_probability=0.5,
    absent_probability=0.1,
    temperature=1.0,
    bias=0.0,
    chosen_on="this test",
)
ORIENTATIONS = {
    "head first supine": np.diag([1.0, 1.0, 1.0]),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "rows from front to back": np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "rows from back to front": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}
# By 20 degrees, the farthest from axial that is analysed.
OBLIQUE = {"oblique": np.array([[1.0, 0.0, 0.0], [0.0, 0.9397, -0.3420], [0.0, 0.3420, 0.9397]])}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("model")
    weights = _graph().SerializeToString()
    (folder / "model.onnx").write_bytes(weights)
    point = {
        "voxel_threshold": 0.5,
        "minimum_volume_ml": 0.2,
        "present_probability": 0.5,
        "absent_probability": 0.1,
        "temperature": 1,
        "bias": 0,
        "chosen_on": "made for this test",
    }
    kind = FindingKind.PULMONARY_NODULE
    manifest = {
        "name": "bright",
        "version": "1",
        "weights": "model.onnx",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "input": {"name": "hu", "spacing_mm": 2.5, "multiple_of": 16, "minimum_hu": -1024, "maximum_hu": 3071},
        "anatomy": list(ANATOMY),
        "lesions": [kind],
        "calibration": "none",
        "operating_points": {kind: point},
        "evidence": {kind: {"grade": "C", "trials": []}},
        "not_assessed": {other: "not learned" for other in FindingKind if other is not kind},
        "training_data": [],
        "familiarity": {"limit": 9.0, "fitted_on": "this test"},
    }
    (folder / "model.json").write_text(json.dumps(manifest))
    return Detector(ModelSession.open(folder, threads=1))


def _graph() -> onnx.ModelProto:
    """lesions = sigmoid((hu - 150) / 20), anatomy = 0, study logit = (largest hu - 150) / 20, strangeness = 5."""
    grid = ["d", "h", "w"]
    constants = [
        helper.make_tensor("bright", TensorProto.FLOAT, [], [BRIGHT_HU]),
        helper.make_tensor("width", TensorProto.FLOAT, [], [20.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("grid_axes", TensorProto.INT64, [3], [2, 3, 4]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("five", TensorProto.FLOAT, [], [5.0]),
        helper.make_tensor("all_axes", TensorProto.INT64, [4], [1, 2, 3, 4]),
    ]
    nodes = [
        helper.make_node("Sub", ["hu", "bright"], ["above"]),
        helper.make_node("Div", ["above", "width"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["lesions"]),
        helper.make_node("ReduceMax", ["logits", "grid_axes"], ["study_logits"], keepdims=0),
        helper.make_node("Mul", ["hu", "zero"], ["nothing"]),
        helper.make_node("ReduceMax", ["nothing", "all_axes"], ["none"], keepdims=0),
        helper.make_node("Add", ["none", "five"], ["strangeness"]),
        helper.make_node("Squeeze", ["nothing", "axis"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["anatomy"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("hu", TensorProto.FLOAT, [1, 1, *grid])],
        [
            helper.make_tensor_value_info("anatomy", TensorProto.UINT8, [1, *grid]),
            helper.make_tensor_value_info("lesions", TensorProto.FLOAT, [1, 1, *grid]),
            helper.make_tensor_value_info("study_logits", TensorProto.FLOAT, [1, 1]),
            helper.make_tensor_value_info("strangeness", TensorProto.FLOAT, [1]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _thorax(orientation: np.ndarray, ball_mm: tuple[float, float, float] | None) -> tuple[Volume, np.ndarray]:
    """An elliptic body with two lungs around the origin, a bright ball at `ball_mm`; the ball's mask."""
    return _made_thorax(tuple(map(tuple, orientation)), ball_mm)


@lru_cache(maxsize=8)
def _made_thorax(
    orientation: tuple[tuple[float, ...], ...], ball_mm: tuple[float, float, float] | None
) -> tuple[Volume, np.ndarray]:
    shape, spacing = (90, 180, 240), (3.0, 1.7, 1.7)
    affine = np.eye(4)
    x, y, z = np.array(orientation)
    affine[:3, :3] = np.stack([z * spacing[0], y * spacing[1], x * spacing[2]], axis=1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    geometry = Geometry(affine, shape)
    points = geometry.index_to_patient(np.moveaxis(np.indices(shape), 0, -1))
    px, py, pz = np.moveaxis(points, -1, 0)
    hu = np.full(shape, -1000.0)
    hu[(px / 170) ** 2 + (py / 120) ** 2 < 1] = 40
    for side in (-75, 75):
        hu[((px - side) / 60) ** 2 + (py / 80) ** 2 + (pz / 110) ** 2 < 1] = -850
    ball = np.zeros(shape, bool)
    if ball_mm is not None:
        ball = ((points - np.array(ball_mm)) ** 2).sum(axis=-1) < RADIUS_MM**2
        hu[ball] = 300
    uids = tuple(f"1.2.3.{i + 1}" for i in range(shape[0]))
    hu = hu.astype(np.int16)
    for shared in (hu, ball):
        shared.flags.writeable = False
    return Volume(hu, geometry, "1.2.3", uids, (None,) * shape[0]), ball


@lru_cache(maxsize=8)
def _lungs(volume: Volume) -> Lungs:
    lungs = segment_lungs(volume)
    for mask in (lungs.body, lungs.airways, lungs.left, lungs.right):
        mask.flags.writeable = False
    return lungs


@pytest.mark.parametrize("name", ORIENTATIONS | OBLIQUE)
@pytest.mark.parametrize("side", [Laterality.LEFT, Laterality.RIGHT])
def test_a_ball_is_found_where_it_is_whatever_the_orientation(detector: Detector, name: str, side: Laterality) -> None:
    """Side by the patient's x, centre within 2 mm, outline on the source grid with Dice above 0.9, size to a pixel."""
    centre_mm = (75.0 if side is Laterality.LEFT else -75.0, 20.0, 50.0)
    volume, ball = _thorax((ORIENTATIONS | OBLIQUE)[name], centre_mm)
    detection = detector.detect(volume, _lungs(volume), sharp_kernel=False)
    study, lesion = [f for f in detection.findings if f.kind is FindingKind.PULMONARY_NODULE]
    assert (study.presence, study.laterality, study.lesion) == (Presence.PRESENT, side, None)
    assert (lesion.presence, lesion.laterality, lesion.lesion) == (Presence.PRESENT, side, 1)
    assert lesion.site == f"{side} lung, upper zone"
    region = lesion.region
    assert region is not None
    assert np.linalg.norm(np.subtract(region.centre_mm, centre_mm)) < 2.0
    outline = np.zeros_like(ball)
    outline[region.box] = region.mask
    assert 2 * (outline & ball).sum() / (outline.sum() + ball.sum()) > 0.9
    assert ball[region.key_slice].sum() == ball.sum(axis=(1, 2)).max()
    sizes = {m.quantity: m.value for m in lesion.measurements}
    assert sizes[Quantity.LONG_AXIS] == pytest.approx(2 * RADIUS_MM, abs=2.5)
    assert sizes[Quantity.SHORT_AXIS] == pytest.approx(2 * RADIUS_MM, abs=2.5)
    assert sizes[Quantity.VOLUME] == pytest.approx(4 / 3 * np.pi * RADIUS_MM**3, rel=0.12)
    assert sizes[Quantity.MEAN_ATTENUATION] == pytest.approx(300, abs=40)


def _blind(detector: Detector) -> Detector:
    """One whose network for nodules sees none."""
    session = SimpleNamespace(
        manifest=detector.manifest.model_copy(update={"nodules": NODULES}),
        run=detector.session.run,
        judge=lambda patches: np.full(len(patches), -9.0, np.float32),
    )
    return Detector(session)  # type: ignore[arg-type]


def test_a_mass_is_described_though_the_nodule_network_sees_none(detector: Detector) -> None:
    """A ball of 24 mm, judged no nodule: it is too large for the patches, and the lesion network outlines it."""
    volume, ball = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    findings = _blind(detector).detect(volume, _lungs(volume), sharp_kernel=False).findings
    study, mass = [f for f in findings if f.kind is FindingKind.PULMONARY_NODULE]
    assert (study.presence, mass.presence, mass.laterality) == (Presence.PRESENT, Presence.PRESENT, Laterality.LEFT)
    assert mass.region is not None
    outline = np.zeros_like(ball)
    outline[mass.region.box] = mass.region.mask
    assert 2 * (outline & ball).sum() / (outline.sum() + ball.sum()) > 0.9
    assert mass.probability == study.probability
    assert mass.reason is None


@pytest.mark.parametrize("side", [Laterality.LEFT, Laterality.RIGHT])
def test_a_mass_in_a_lung_without_air_is_on_its_side(detector: Detector, side: Laterality) -> None:
    """The other lung is all that is aerated, and may lie nearer to it than any other."""
    x_mm = 75.0 if side is Laterality.LEFT else -75.0
    volume, _ = _thorax(np.eye(3), (x_mm, 20.0, 50.0))
    columns = volume.geometry.index_to_patient(np.stack([np.zeros(240), np.zeros(240), np.arange(240)], axis=1))[:, 0]
    opaque = (volume.hu == -850) & (np.sign(columns) == np.sign(x_mm))
    white = replace(volume, hu=np.where(opaque, 40, volume.hu).astype(np.int16))
    findings = _blind(detector).detect(white, segment_lungs(white), sharp_kernel=False).findings
    study, mass = [f for f in findings if f.kind is FindingKind.PULMONARY_NODULE]
    assert (study.laterality, mass.laterality) == (side, side)
    assert mass.site is not None
    assert mass.site.startswith(f"{side} lung")


@pytest.mark.parametrize(
    ("share", "withheld", "says_so"), [(1.0, False, True), (0.4, False, False), (1.0, True, False)]
)
def test_a_mass_that_is_consolidation_as_well_says_so(
    detector: Detector, share: float, withheld: bool, says_so: bool
) -> None:
    """The network's second kind outlines the front part of what its first does."""
    volume, _ = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    manifest, second = detector.manifest, FindingKind.CONSOLIDATION
    (known,) = manifest.lesions

    def run(hu: np.ndarray) -> HeadOutputs:
        outputs = detector.session.run(hu)
        rows = np.flatnonzero((outputs.lesions[0] > 0.5).any(axis=(0, 2)))
        also = outputs.lesions.copy()
        also[:, :, rows[0] + round(share * len(rows)) :] = 0.0
        logits = np.concatenate([outputs.study_logits] * 2)
        return replace(outputs, lesions=np.concatenate([outputs.lesions, also]), study_logits=logits)

    both = SimpleNamespace(
        manifest=manifest.model_copy(
            update={
                "nodules": NODULES,
                "lesions": (known, second),
                "operating_points": {known: (point := manifest.operating_points[known]), second: point},
                "evidence": {known: (evidence := manifest.evidence[known]), second: evidence},
                "withheld": {second: "not tried"} if withheld else {},
            }
        ),
        run=run,
        judge=lambda patches: np.full(len(patches), -9.0, np.float32),
    )
    findings = Detector(both).detect(volume, _lungs(volume), sharp_kernel=False).findings  # type: ignore[arg-type]
    _, mass = [f for f in findings if f.kind is FindingKind.PULMONARY_NODULE]
    said = "also outlined as consolidation: the two look alike" if says_so else None
    assert (mass.presence, mass.reason) == (Presence.PRESENT, said)


@pytest.mark.parametrize(
    ("share", "pattern_logit", "withheld", "contested"),
    [(1.0, 9.0, False, True), (0.6, 9.0, False, False), (1.0, -9.0, False, False), (1.0, 9.0, True, False)],
)
def test_haze_that_is_an_interstitial_pattern_as_well_is_left_open(
    detector: Detector, share: float, pattern_logit: float, withheld: bool, contested: bool
) -> None:
    """The network sees a pattern in the front part of the haze, nearly as likely, and its graph halved it."""
    volume, _ = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    haze, pattern = FindingKind.GROUND_GLASS_OPACITY, FindingKind.INTERSTITIAL_ABNORMALITY
    point = detector.manifest.operating_points[FindingKind.PULMONARY_NODULE]
    evidence = detector.manifest.evidence[FindingKind.PULMONARY_NODULE]

    def run(hu: np.ndarray) -> HeadOutputs:
        outputs = detector.session.run(hu)
        (seen,) = outputs.lesions
        rows = np.flatnonzero((seen > 0.5).any(axis=(0, 2)))
        also = seen / 2
        also[:, rows[0] + round(share * len(rows)) :] = 0.0
        logits = np.array([*outputs.study_logits, pattern_logit], np.float32)
        return replace(outputs, lesions=np.stack([seen, also]), study_logits=logits)

    manifest = detector.manifest.model_copy(
        update={
            "lesions": (haze, pattern),
            "operating_points": {haze: point, pattern: point},
            "evidence": {haze: evidence, pattern: evidence},
            "not_assessed": {kind: "not learned" for kind in FindingKind if kind not in (haze, pattern)},
            "withheld": {pattern: "not tried"} if withheld else {},
        }
    )
    session = SimpleNamespace(manifest=manifest, run=run)
    findings = Detector(session).detect(volume, _lungs(volume), sharp_kernel=False).findings  # type: ignore[arg-type]
    study, lesion = [f for f in findings if f.kind is haze]
    assert study.presence is lesion.presence is (Presence.INDETERMINATE if contested else Presence.PRESENT)
    assert ("the two look alike" in (study.reason or "")) is contested
    assert study.probability is not None
    assert (study.probability <= point.absent_probability) is contested


def _answering(
    detector: Detector, kind: FindingKind, run: Callable[[np.ndarray], HeadOutputs], **changes: float
) -> Detector:
    """One whose network says about `kind` what `run` says, and nothing about another; `changes` of its point."""
    (known,) = detector.manifest.lesions
    point = detector.manifest.operating_points[known].model_copy(update=changes)
    manifest = detector.manifest.model_copy(
        update={
            "lesions": (kind,),
            "operating_points": {kind: point},
            "evidence": {kind: detector.manifest.evidence[known]},
            "not_assessed": detector.manifest.not_assessed | {known: "not learned"},
        }
    )
    return Detector(SimpleNamespace(manifest=manifest, run=run))  # type: ignore[arg-type]


def test_what_is_less_sure_extends_a_lesion_and_makes_none(detector: Detector) -> None:
    """The front half of a ball is sure; its back half and a ball on the other side reach 0.45."""
    volume, ball = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    kind = FindingKind.CONSOLIDATION

    def run(hu: np.ndarray) -> HeadOutputs:
        outputs = detector.session.run(hu)
        inside = outputs.lesions[0] > 0.5
        rows = np.flatnonzero(inside.any(axis=(0, 2)))
        sure = inside & (np.arange(inside.shape[1])[:, None] < rows.mean())
        lesions = np.select([sure, inside | inside[:, :, ::-1]], [0.9, 0.45]).astype(np.float32)
        return replace(outputs, lesions=lesions[None])

    def outlined(threshold: float) -> np.ndarray:
        only = _answering(detector, kind, run, voxel_threshold=threshold)
        findings = only.detect(volume, _lungs(volume), sharp_kernel=False).findings
        study, lesion = [f for f in findings if f.kind is kind]
        assert (study.presence, study.laterality) == (Presence.PRESENT, Laterality.LEFT)
        assert lesion.region is not None
        outline = np.zeros_like(ball)
        outline[lesion.region.box] = lesion.region.mask
        return outline

    half, whole = outlined(0.5), outlined(0.35)
    assert 2 * (whole & ball).sum() / (whole.sum() + ball.sum()) > 0.75
    assert half.sum() < 0.7 * whole.sum()
    assert whole[half].all()


@pytest.mark.parametrize(("front_hu", "back_hu", "share"), [(10, 55, 0.5), (50, 55, 1.0)])
def test_muscle_in_the_outline_of_the_heart_sac_is_no_fluid(
    detector: Detector, front_hu: int, back_hu: int, share: float
) -> None:
    """The network outlines a ball in the mediastinum: fluid in front and muscle behind, or blood in front."""
    volume, ball = _thorax(np.eye(3), (0.0, 0.0, 0.0))
    kind = FindingKind.PERICARDIAL_EFFUSION
    front = ball & (np.arange(ball.shape[1])[:, None] < np.argwhere(ball)[:, 1].mean())
    hu = np.select([front, ball], [front_hu, back_hu], volume.hu).astype(np.int16)
    chest = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    lungs = segment_lungs(chest)
    grid = detector.network_grid(chest, lungs)

    def run(hu: np.ndarray) -> HeadOutputs:
        outputs = detector.session.run(hu)
        outlined = grid.from_source(ball).astype(np.float32)[None]
        return replace(outputs, lesions=outlined, study_logits=np.array([9.0], np.float32))

    only = _answering(detector, kind, run)
    findings = only.detect(chest, lungs, sharp_kernel=False).findings
    study, sac = [f for f in findings if f.kind is kind]
    assert study.presence is Presence.PRESENT
    assert sac.region is not None
    outline = np.zeros_like(ball)
    outline[sac.region.box] = sac.region.mask
    assert outline.sum() == pytest.approx(share * ball.sum(), rel=0.25)
    assert (outline & front).sum() > (0.9 if share < 1 else 0.4) * outline.sum()


@pytest.mark.parametrize("organ", ["background", "pulmonary_trunk"])
def test_a_vessel_that_bulges_into_the_lung_is_no_nodule(detector: Detector, organ: str) -> None:
    """A ball that the network for nodules believes in, in an image that the anatomy head calls `organ` everywhere."""
    volume, ball = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    hu = np.where(ball, 60, volume.hu).astype(np.int16)
    soft = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    anatomy = list(detector.manifest.anatomy)
    place = anatomy.index(organ)
    anatomy[0], anatomy[place] = anatomy[place], anatomy[0]
    sure = SimpleNamespace(
        manifest=detector.manifest.model_copy(update={"nodules": NODULES, "anatomy": tuple(anatomy)}),
        run=detector.session.run,
        judge=lambda patches: np.full(len(patches), 9.0, np.float32),
    )
    findings = Detector(sure).detect(soft, segment_lungs(soft), sharp_kernel=False).findings  # type: ignore[arg-type]
    study = next(f for f in findings if f.kind is FindingKind.PULMONARY_NODULE)
    assert study.presence is (Presence.PRESENT if organ == "background" else Presence.ABSENT)


def test_what_may_be_a_nodule_is_pointed_at(detector: Detector) -> None:
    """A ball that the network for nodules is unsure of: an indeterminate answer that says where to look."""
    volume, ball = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    hu = np.where(ball, 60, volume.hu).astype(np.int16)
    soft = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    unsure = SimpleNamespace(
        manifest=detector.manifest.model_copy(update={"nodules": NODULES}),
        run=detector.session.run,
        judge=lambda patches: np.full(len(patches), -0.85, np.float32),
    )
    findings = Detector(unsure).detect(soft, segment_lungs(soft), sharp_kernel=False).findings  # type: ignore[arg-type]
    study, *lesions = [f for f in findings if f.kind is FindingKind.PULMONARY_NODULE]
    assert {f.presence for f in (study, *lesions)} == {Presence.INDETERMINATE}
    assert 1 <= len(lesions) <= 3
    assert study.reason == "what was found may be a nodule, a mass, a vessel or collapsed lung"
    assert {f.reason for f in lesions} == {"may be no nodule"}
    assert not any(m.quantity is Quantity.LESION_COUNT for m in study.measurements)
    assert any(f.region is not None and ball[f.region.box][f.region.mask].mean() > 0.9 for f in lesions)


def _asked_for(kind: FindingKind, known: ModelManifest) -> ModelManifest:
    """The manifest of a model that answers to `kind` as the known one does to nodules, and to nothing else."""
    return known.model_copy(
        update={
            "lesions": (kind,),
            "operating_points": {kind: known.operating_points[FindingKind.PULMONARY_NODULE]},
            "evidence": {kind: known.evidence[FindingKind.PULMONARY_NODULE]},
            "not_assessed": {other: "not learned" for other in FindingKind if other is not kind},
        }
    )


def test_ground_glass_and_no_emphysema_in_lungs_without_air_are_left_open(detector: Detector) -> None:
    """The same opacity in lungs after a full breath and at rest; the lesion network sees it in both."""
    kind = FindingKind.GROUND_GLASS_OPACITY
    session = SimpleNamespace(manifest=_asked_for(kind, detector.manifest), run=detector.session.run)
    volume, _ = _thorax(np.eye(3), (75.0, 20.0, 50.0))
    answers = []
    for lung_hu in (-850, -690):
        hu = np.where(volume.hu == -850, lung_hu, volume.hu).astype(np.int16)
        lungs = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
        findings = Detector(session).detect(lungs, segment_lungs(lungs), sharp_kernel=False).findings  # type: ignore[arg-type]
        answers.append({f.kind: f for f in findings if f.lesion is None})
    full, rest = answers
    assert (full[kind].presence, rest[kind].presence) == (Presence.PRESENT, Presence.INDETERMINATE)
    assert "little air look like ground glass" in (rest[kind].reason or "")
    without, hidden = full[FindingKind.EMPHYSEMA], rest[FindingKind.EMPHYSEMA]
    assert (without.presence, hidden.presence) == (Presence.ABSENT, Presence.INDETERMINATE)
    assert "little air hide emphysema" in (hidden.reason or "")


def test_every_kind_has_one_answer_and_none_is_absent_without_being_assessed(detector: Detector) -> None:
    volume, _ = _thorax(np.eye(3), None)
    detection = detector.detect(volume, _lungs(volume), sharp_kernel=False)
    answers = {f.kind: f for f in detection.findings if f.lesion is None}
    assert list(answers) == list(FindingKind)
    assessed = {FindingKind.PULMONARY_NODULE, FindingKind.EMPHYSEMA, FindingKind.MEDICAL_DEVICE}
    for kind, answer in answers.items():
        assert answer.presence is (Presence.ABSENT if kind in assessed else Presence.NOT_ASSESSED)
        if kind in RULES and kind not in assessed:
            # There is no bone in it, which calcium would be told by.
            assert any(word in (answer.reason or "") for word in ("outlined", "spine", "cut off"))
        else:
            assert (answer.reason == "not learned") is (kind not in assessed)


def test_the_same_volume_gives_the_same_tracking_uids(detector: Detector) -> None:
    volume, _ = _thorax(np.eye(3), (75.0, 0.0, 0.0))
    lungs = _lungs(volume)
    first, second = (
        [f.tracking_uid for f in detector.detect(volume, lungs, sharp_kernel=False).findings] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_network_grid_keeps_positions_and_leads_back(name: str) -> None:
    """A coordinate ramp as voxels arrives at its own coordinates on the network grid, and back on the source grid."""
    volume, _ = _thorax(ORIENTATIONS[name], None)
    lungs = _lungs(volume)
    points = volume.geometry.index_to_patient(np.moveaxis(np.indices(volume.hu.shape), 0, -1))
    for axis in range(3):
        ramp = Volume(
            np.rint(points[..., axis]).astype(np.int16),
            volume.geometry,
            "1",
            volume.sop_instance_uids,
            volume.frame_numbers,
        )
        grid = prepare(ramp, lungs, spacing_mm=2.5, multiple_of=16, minimum_hu=-1024.0, maximum_hu=3071.0)
        assert all(n % 16 == 0 for n in grid.hu.shape[2:])
        at = grid.geometry.index_to_patient(np.moveaxis(np.indices(grid.geometry.shape), 0, -1))[..., axis]
        # Away from the border of the source, where air is filled in.
        inside = grid.geometry.index_to_patient(np.moveaxis(np.indices(grid.geometry.shape), 0, -1))
        within = (np.abs(inside) < (np.abs(points).reshape(-1, 3).max(axis=0) - 8)).all(axis=-1)
        assert np.abs(grid.hu[0, 0] - at)[within].max() < 1.0
        box = (slice(30, 50), slice(60, 100), slice(80, 120))
        back = grid.to_source(grid.hu[0, 0], box)
        assert np.abs(back - points[box][..., axis]).max() < 1.0


def test_lungs_of_a_simple_thorax_are_on_their_sides() -> None:
    """Each lung within 3 % of its ellipsoid, left where x is positive, in every orientation."""
    expected_ml = 4 / 3 * np.pi * 60 * 80 * 110 / 1000
    for orientation in ORIENTATIONS.values():
        volume, _ = _thorax(orientation, None)
        lungs = _lungs(volume)
        for mask, sign in ((lungs.left, 1), (lungs.right, -1)):
            assert mask.sum() * volume.geometry.voxel_volume_mm3 / 1000 == pytest.approx(expected_ml, rel=0.03)
            assert np.sign(volume.geometry.index_to_patient(np.argwhere(mask).mean(axis=0))[0]) == sign
        assert not (lungs.left & lungs.right).any()


def test_gas_of_the_stomach_is_no_lung(detector: Detector) -> None:
    """The left lung is opaque, a large bubble lies below it: the answer is about the right lung alone and says so."""
    volume, _ = _thorax(np.eye(3), None)
    points = volume.geometry.index_to_patient(np.moveaxis(np.indices(volume.hu.shape), 0, -1))
    hu = volume.hu.copy()
    hu[(points[..., 0] > 0) & (hu == -850)] = 30
    hu[((points - (75.0, 0.0, -90.0)) ** 2).sum(axis=-1) < 42.0**2] = -1000
    opaque = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    lungs = segment_lungs(opaque)
    assert lungs.left.sum() == 0
    findings = detector.detect(opaque, lungs, sharp_kernel=False).findings
    (emphysema,) = [f for f in findings if f.kind is FindingKind.EMPHYSEMA]
    assert (emphysema.presence, emphysema.laterality, emphysema.site) == (
        Presence.ABSENT,
        Laterality.RIGHT,
        "right lung",
    )
    assert "only one lung" in (emphysema.reason or "")


@pytest.mark.parametrize(("pneumothorax_mm", "expected"), [(30.0, Presence.PRESENT), (75.0, Presence.INDETERMINATE)])
def test_emphysema_beside_a_pneumothorax(detector: Detector, pneumothorax_mm: float, expected: Presence) -> None:
    """Holes of 10 % in both lungs, and before the left one air of which the network outlines all; other air is lung."""
    kind = FindingKind.PNEUMOTHORAX
    volume, _ = _thorax(np.eye(3), None)
    hu, lung = volume.hu.copy(), volume.hu == -850
    hu[lung & (np.random.default_rng(1).random(hu.shape) < 0.1)] = -960
    points = volume.geometry.index_to_patient(np.moveaxis(np.indices(hu.shape), 0, -1))
    hu[lung & (points[..., 0] > 0) & (points[..., 1] < pneumothorax_mm - 80)] = -1000
    filled = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    lungs = segment_lungs(filled)

    def outlined(grid_hu: np.ndarray) -> HeadOutputs:
        body = np.pad(grid_hu[0, 0, 1:-1, 1:-1, 1:-1], 1, constant_values=0)
        y, x = np.indices(body.shape)[1:]
        inner = (np.abs(y - y.mean()) < 40) & (np.abs(x - x.mean()) < 56)
        air = ((body < -930) & inner).astype(np.float32)
        return HeadOutputs(
            anatomy=np.zeros(air.shape, np.uint8), lesions=air[None], study_logits=np.array([9.0], np.float32)
        )

    session = SimpleNamespace(manifest=_asked_for(kind, detector.manifest), run=outlined)
    findings = Detector(session).detect(filled, lungs, sharp_kernel=False).findings  # type: ignore[arg-type]
    answer = next(f for f in findings if f.kind is FindingKind.EMPHYSEMA)
    assert next(f for f in findings if f.kind is kind).presence is Presence.PRESENT
    assert answer.presence is expected
    assert ("pneumothorax" in (answer.reason or "")) is (expected is Presence.INDETERMINATE)


def test_a_score_that_a_small_move_changes_is_no_answer(detector: Detector) -> None:
    """One bright voxel of the network's grid: the second look is smoother and dims it."""
    volume, _ = _thorax(np.eye(3), None)
    row, column = 90, 75
    hu = volume.hu.copy()
    hu[44:46, row : row + 2, column : column + 2] = 900
    speck = Volume(hu, volume.geometry, "1", volume.sop_instance_uids, volume.frame_numbers)
    findings = detector.detect(speck, segment_lungs(speck), sharp_kernel=False).findings
    answer = next(f for f in findings if f.kind is FindingKind.PULMONARY_NODULE)
    assert answer.presence is Presence.INDETERMINATE
    assert "not stable" in (answer.reason or "")


def test_what_is_measured_on_an_image_unlike_the_known_ones_is_left_open_too(detector: Detector) -> None:
    volume, _ = _thorax(np.eye(3), None)
    strange = detector.manifest.model_copy(update={"familiarity": Familiarity(limit=4.0, fitted_on="this test")})
    lungs = _lungs(volume)
    known, unknown = (
        {f.kind: f for f in of.detect(volume, lungs, sharp_kernel=False).findings}
        for of in (detector, Detector(detector.session, strange))
    )
    for asked in (FindingKind.MEDICAL_DEVICE, FindingKind.EMPHYSEMA):
        assert (known[asked].presence, unknown[asked].presence) == (Presence.ABSENT, Presence.INDETERMINATE)
        assert "unlike" in (unknown[asked].reason or "")


def test_an_image_unlike_the_known_ones_gets_no_answer(detector: Detector) -> None:
    outputs = HeadOutputs(
        anatomy=np.zeros((1, 1, 1), np.uint8), lesions=np.zeros((1, 1, 1, 1)), study_logits=np.zeros(1), strangeness=5.0
    )
    looks = (outputs, outputs)
    known = detector.manifest.model_copy(update={"familiarity": Familiarity(limit=4.0, fitted_on="this test")})
    assert [issue.check for issue in unfamiliar(known, averaged(*looks))] == ["familiarity"]
    wider = detector.manifest.model_copy(update={"familiarity": Familiarity(limit=6.0, fitted_on="this test")})
    assert unfamiliar(wider, averaged(*looks)) == ()
