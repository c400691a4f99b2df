"""Compression fractures and low bone density, from the vertebral bodies told apart along the spine."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.anatomy import Anatomy, lung_ends_mm
from models.findings import Finding, FindingKind, Measurement, Presence, Quantity, Region
from models.measure import region_of
from models.measured.answer import answer, not_assessed
from models.measured.outline import Box
from models.measured.vertebrae import (
    StraightSpine,
    Vertebra,
    axes_at,
    bodies_beyond,
    find_vertebrae,
    point_on,
    straighten,
)

# Semiquantitative grades by height lost: 20, 25, 40 % (Genant et al., J Bone Miner Res 1993;8:1137).
GENANT_LOSS = (0.20, 0.25, 0.40)
# Trabecular attenuation at 120 kV: below 110 HU specific for osteoporosis, above 160 HU sensitive against it
# (Pickhardt et al., Ann Intern Med 2013;158:588).
OSTEOPOROSIS_HU = 110.0
NORMAL_DENSITY_HU = 160.0
_THICK_SLICE_MM = 3.0
_LEAST_BODIES = 4
_LEAST_MEASURED, _LEAST_MEASURED_PART = 5, 0.5
_DENSITY_BODIES = 3
_LARGEST_DENSITY_SPREAD_HU = 90.0
_PLAUSIBLE_BONE_HU = (-20.0, 500.0)
# Counted from T1: L5.
_LOWEST_LEVEL = 17
_COLLAPSED = "a vertebral body has little height in its middle and could not be measured as a whole"
_NO_SPINE = "the spine could not be followed far enough to tell vertebrae apart"


def vertebral_compression_fracture(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Height of each whole vertebral body in front, middle and back; a loss of 25 % or more is a fracture.

    Losses of 20 to 25 % (Genant grade 1) are undetermined: normal variants lie there too. So is a body that may be
    crushed so far that it could not be measured.
    """
    kind = FindingKind.VERTEBRAL_COMPRESSION_FRACTURE
    slice_mm = anatomy.volume.geometry.spacing_mm[0]
    if slice_mm > _THICK_SLICE_MM:
        return (not_assessed(anatomy, kind, f"slices {slice_mm:.1f} mm apart are too thick to measure vertebrae"),)
    spine, bodies = anatomy.once(_bodies)
    if spine is None:
        return (not_assessed(anatomy, kind, _NO_SPINE),)
    losses = {n: _loss(bodies, n) for n, body in enumerate(bodies) if body.heights_mm}
    lost = [n for n, loss in losses.items() if loss >= GENANT_LOSS[0]]
    whole = len(bodies) + bodies_beyond(spine, bodies)
    enough = len(losses) >= max(_LEAST_MEASURED, _LEAST_MEASURED_PART * whole)
    seen = f"{len(losses)} of {whole} whole vertebral bodies could be measured"
    if not enough and not lost:
        return (not_assessed(anatomy, kind, f"{seen}; the end plates of the others are not told from their discs"),)
    if len(lost) > len(losses) / 2:
        return (not_assessed(anatomy, kind, "the heights measured along the spine contradict each other"),)
    sunken = [n for n, body in enumerate(bodies) if body.may_be_collapsed]
    parts = (
        *(
            _fracture(anatomy, spine, bodies, place, losses[place], number)
            for number, place in enumerate(sorted(lost, key=lambda n: -losses[n]), start=1)
        ),
        *(_sunken(anatomy, spine, bodies, place, number) for number, place in enumerate(sunken, start=len(lost) + 1)),
    )
    certain = any(part.presence is Presence.PRESENT for part in parts)
    presence = Presence.PRESENT if certain else Presence.INDETERMINATE if parts else Presence.ABSENT
    count = sum(part.presence is presence for part in parts)
    grey = "a loss of height of 20 to 25 % may be a mild fracture or a normal variant"
    reasons = [grey] if presence is Presence.INDETERMINATE and lost else []
    reasons += [_COLLAPSED] if presence is Presence.INDETERMINATE and sunken else []
    reasons += [seen] if len(losses) < whole else []
    study = answer(
        anatomy,
        kind,
        presence,
        method="heights between the end plates of each body, in a reformat along the spine; present from 25 % loss",
        reason="; ".join(reasons) or None,
        site=parts[0].site if len(parts) == 1 else _span(anatomy, spine, bodies, sorted(losses)),
        measurements=(Measurement(quantity=Quantity.LESION_COUNT, value=float(count), unit="1"),) if count else (),
        region=parts[0].region if parts else None,
    )
    return (study, *parts)


def low_bone_density(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Mean trabecular HU of the lowest whole vertebral bodies, the median body of three; unenhanced scans only."""
    kind = FindingKind.LOW_BONE_DENSITY
    if anatomy.blood_pool.is_scale_in_doubt:
        return (not_assessed(anatomy, kind, anatomy.blood_pool.evidence),)
    if anatomy.blood_pool.contrast is not False:
        given = "contrast was given, which" if anatomy.blood_pool.contrast else "contrast may have been given, which"
        return (not_assessed(anatomy, kind, f"{given} raises the attenuation of bone"),)
    spine, bodies = anatomy.once(_bodies)
    if spine is None:
        return (not_assessed(anatomy, kind, _NO_SPINE),)
    sound = [
        n
        for n, body in enumerate(bodies)
        if not body.may_be_collapsed and (not body.heights_mm or _loss(bodies, n) < GENANT_LOSS[0])
    ]
    lowest = sorted(sound[:_DENSITY_BODIES], key=lambda n: bodies[n].trabecular_hu)
    values = [bodies[n].trabecular_hu for n in lowest]
    low, high = _PLAUSIBLE_BONE_HU
    if len(values) < _DENSITY_BODIES or values[0] < low or values[-1] > high:
        return (not_assessed(anatomy, kind, "the lowest vertebral bodies could not be measured"),)
    if values[-1] - values[0] > _LARGEST_DENSITY_SPREAD_HU:
        spread = (
            f"the lowest vertebral bodies measure {values[0]:.0f} to {values[-1]:.0f} HU: too unlike to be averaged"
        )
        return (not_assessed(anatomy, kind, spread),)
    typical = lowest[len(lowest) // 2]
    hu = bodies[typical].trabecular_hu
    presence, reason = _density(hu, anatomy.sharp_kernel)
    return (
        answer(
            anatomy,
            kind,
            presence,
            method="trabecular attenuation of the lowest three whole vertebral bodies, the median body; present below "
            f"{OSTEOPOROSIS_HU:g} HU, absent from {NORMAL_DENSITY_HU:g} HU, bands for 120 kV",
            reason=reason,
            site=_span(anatomy, spine, bodies, [typical]),
            measurements=(Measurement(quantity=Quantity.MEAN_ATTENUATION, value=hu, unit="[hnsf'U]"),),
            region=_body_region(anatomy, spine, bodies[typical], (0.25, 0.65), 0.2),
        ),
    )


def _bodies(anatomy: Anatomy) -> tuple[StraightSpine | None, tuple[Vertebra, ...]]:
    spine = straighten(anatomy)
    bodies = find_vertebrae(spine) if spine else ()
    return (spine, bodies) if len(bodies) >= _LEAST_BODIES else (None, ())


def _loss(bodies: Sequence[Vertebra], at: int) -> float:
    """Part of its height a body lost in front, in the middle, or as a whole against its measured neighbours."""
    heights = bodies[at].heights_mm
    assert heights is not None
    anterior, middle, posterior = heights
    neighbours = [
        other.heights_mm[2]
        for n, other in enumerate(bodies)
        if 0 < abs(n - at) <= 2 and other.heights_mm and other.heights_mm[0] > 0.8 * other.heights_mm[2]
    ]
    whole = 1 - posterior / float(np.mean(neighbours)) if len(neighbours) >= 2 else 0.0
    return max(1 - min(anterior, middle) / posterior, whole)


def _fracture(
    anatomy: Anatomy, spine: StraightSpine, bodies: Sequence[Vertebra], at: int, loss: float, number: int
) -> Finding:
    kind = FindingKind.VERTEBRAL_COMPRESSION_FRACTURE
    anterior, middle, posterior = bodies[at].heights_mm or (0.0, 0.0, 0.0)
    certain = loss >= GENANT_LOSS[1]
    return answer(
        anatomy,
        kind,
        Presence.PRESENT if certain else Presence.INDETERMINATE,
        method="heights between the end plates in a reformat along the spine",
        reason=None if certain else "a loss of height of 20 to 25 % may be a normal variant",
        site=_span(anatomy, spine, bodies, [at]),
        lesion=number,
        measurements=(
            Measurement(quantity=Quantity.ANTERIOR_HEIGHT, value=anterior, unit="mm"),
            Measurement(quantity=Quantity.MIDDLE_HEIGHT, value=middle, unit="mm"),
            Measurement(quantity=Quantity.POSTERIOR_HEIGHT, value=posterior, unit="mm"),
            Measurement(quantity=Quantity.VERTEBRAL_HEIGHT_RATIO, value=1 - loss, unit="{ratio}"),
            Measurement(quantity=Quantity.GENANT_GRADE, value=float(sum(loss >= g for g in GENANT_LOSS)), unit="1"),
        ),
        region=_body_region(anatomy, spine, bodies[at], (0.0, 1.0), 0.45),
    )


def _sunken(anatomy: Anatomy, spine: StraightSpine, bodies: Sequence[Vertebra], at: int, number: int) -> Finding:
    return answer(
        anatomy,
        FindingKind.VERTEBRAL_COMPRESSION_FRACTURE,
        Presence.INDETERMINATE,
        method="heights between the end plates in a reformat along the spine",
        reason=_COLLAPSED,
        site=_span(anatomy, spine, bodies, [at]),
        lesion=number,
        region=_body_region(anatomy, spine, bodies[at], (0.0, 1.0), 0.45),
    )


def _density(hu: float, sharp_kernel: bool) -> tuple[Presence, str | None]:
    if sharp_kernel:
        return Presence.INDETERMINATE, "a sharp kernel changes the attenuation of trabecular bone"
    if hu < OSTEOPOROSIS_HU:
        return Presence.PRESENT, None
    if hu < NORMAL_DENSITY_HU:
        return Presence.INDETERMINATE, "between 110 and 160 HU low bone density can be neither stated nor excluded"
    return Presence.ABSENT, None


def _span(anatomy: Anatomy, spine: StraightSpine, bodies: Sequence[Vertebra], places: Sequence[int]) -> str:
    """The bodies at these places in words, from the highest to the lowest."""
    names = [_level(anatomy, spine, bodies, at) for at in (max(places), min(places))]
    told = [name for name in dict.fromkeys(names) if name]
    return f"spine, about {' to '.join(told)} (estimated level)" if all(names) else "spine (level not told)"


def _level(anatomy: Anatomy, spine: StraightSpine, bodies: Sequence[Vertebra], at: int) -> str | None:
    """The estimated level, counted down from the body at the top of the lungs: the first rib arches over it (T1).

    None where that top is not in the scan, and for a body above T1 or below L5.
    """
    apex_mm = anatomy.once(_apex_mm)
    if apex_mm is None:
        return None
    middles = np.array([point_on(spine, (b.below + b.above) / 2, 0.0)[2] for b in bodies])
    pitch = float(np.mean(np.diff(middles)[-3:]))
    first = len(bodies) - 1 + (apex_mm - middles[-1]) / pitch
    level = 1 + round(first - at)
    if not 1 <= level <= _LOWEST_LEVEL:
        return None
    return f"T{level}" if level <= 12 else f"L{level - 12}"


def _apex_mm(anatomy: Anatomy) -> float | None:
    """LPS z in mm of the top of the lungs; None where they reach the uppermost slice, or there are none."""
    geometry = anatomy.volume.geometry
    uppermost = geometry.shape[0] - 1 if geometry.affine[2, 0] > 0 else 0
    ends = anatomy.once(lung_ends_mm)
    return None if ends is None or uppermost in anatomy.lungs.slices else ends[1]


def _body_region(
    anatomy: Anatomy, spine: StraightSpine, body: Vertebra, depth: tuple[float, float], half_height: float
) -> Region | None:
    """A block of a body: between two parts of its depth, and `half_height` of its pitch up and down."""
    middle = (body.below + body.above) // 2
    whole = body.back_mm - body.front_mm
    low_u, high_u = (body.front_mm + part * whole for part in depth)
    half_w, half_h = 0.35 * whole, half_height * (body.above - body.below) * spine.step_mm[0]
    centre, (up, back, left) = point_on(spine, middle, 0.0), axes_at(spine, middle)
    source = anatomy.volume.geometry
    corners = [
        centre + u * back + w * left + h * up
        for u in (low_u, high_u)
        for w in (-half_w, half_w)
        for h in (-half_h, half_h)
    ]
    index = source.patient_to_index(corners)
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, np.array(source.shape) - 1)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, low + 1, source.shape)
    box: Box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    voxels = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    offset = source.index_to_patient(voxels) - centre
    u, w, h = offset @ back, offset @ left, offset @ up
    inside: npt.NDArray[np.bool_] = (u >= low_u) & (u <= high_u) & (np.abs(w) <= half_w) & (np.abs(h) <= half_h)
    return region_of(inside, box, source) if inside.any() else None
