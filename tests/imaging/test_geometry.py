"""Geometry: index and patient coordinates for any orientation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from scipy.spatial.transform import Rotation

from imaging.geometry import Geometry, geometry_of_stack, slice_normal
from imaging.uids import derive_uid, is_safe_uid

angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
origins = st.tuples(*[st.floats(-1000, 1000)] * 3)
indices = st.tuples(*[st.floats(-50, 600)] * 3)


def _stack(angle_deg, spacing, origin, slices: int = 30) -> tuple[Geometry, np.ndarray, list[float]]:
    row, column, normal = Rotation.from_euler("xyz", angle_deg, degrees=True).as_matrix().T
    positions = np.array(origin) + np.arange(slices)[:, None] * spacing[0] * normal
    orientation = [*row, *column]
    return geometry_of_stack(positions, orientation, spacing[1:], 64, 48, "1.2"), positions, orientation


@given(angles, spacings, origins, indices)
def test_patient_to_index_is_the_inverse_of_index_to_patient(angle_deg, spacing, origin, index) -> None:
    """Going to the patient and back gives the index, for oblique and anisotropic grids."""
    geometry, _, _ = _stack(angle_deg, spacing, origin)
    back = geometry.patient_to_index(geometry.index_to_patient(index))
    np.testing.assert_allclose(back, index, atol=1e-6)


@given(angles, spacings, origins)
def test_stack_follows_the_equation_of_the_standard(angle_deg, spacing, origin) -> None:
    """PS3.3 C.7.6.2.1.1: P = S + X * column spacing * column index + Y * row spacing * row index."""
    geometry, positions, orientation = _stack(angle_deg, spacing, origin)
    row, column = np.array(orientation).reshape(2, 3)
    expected = positions[7] + row * spacing[2] * 5 + column * spacing[1] * 11
    np.testing.assert_allclose(geometry.index_to_patient((7, 11, 5)), expected, atol=1e-6)
    assert geometry.spacing_mm == pytest.approx(spacing)
    assert geometry.voxel_volume_mm3 == pytest.approx(np.prod(spacing))


@given(angles)
def test_normal_is_a_unit_vector_across_the_plane(angle_deg) -> None:
    row, column, normal = Rotation.from_euler("xyz", angle_deg, degrees=True).as_matrix().T
    np.testing.assert_allclose(slice_normal([*row, *column]), normal, atol=1e-9)


@pytest.mark.parametrize(
    "orientation",
    [[0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [float("nan")] * 6, [1, 0, 0, 0.139, 0.99, 0], [2, 0, 0, 0, 0.5, 0]],
)
def test_a_degenerate_orientation_is_refused(orientation) -> None:
    with pytest.raises(ValueError, match="ImageOrientationPatient"):
        slice_normal(orientation)


@given(st.lists(st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_derived_uids_are_valid_and_repeatable(parts) -> None:
    uid = derive_uid(*parts)
    assert UID(uid).is_valid
    assert is_safe_uid(uid)
    assert uid == derive_uid(*parts)


def test_derived_uids_keep_their_parts_apart() -> None:
    assert derive_uid("ab", "c") != derive_uid("a", "bc")
    with pytest.raises(ValueError, match=r"U\+001F"):
        derive_uid("a\x1fb")


@pytest.mark.parametrize("uid", ["", ".", "1..2", "../1.2", "1.2/3", "1.2\n", "1.2 ", "1" * 65, "1.2.", "a.b", "١.٢"])
def test_what_is_no_uid_never_names_a_file(uid) -> None:
    assert not is_safe_uid(uid)


def test_leading_zeros_which_scanners_write_are_tolerated() -> None:
    assert is_safe_uid("1.02.3")
