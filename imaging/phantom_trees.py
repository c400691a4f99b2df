"""Branching trees of the lung: vessels and bronchi that leave the hilum and taper to the periphery.

A tree is grown towards target points by adding, nearest target first, the branch that is cheapest in wire plus path
length (Cuntz et al., PLoS Comput Biol 6(8), 2010); radii follow Murray's law.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.phantom_shapes import Canvas, capsules

FloatArray = npt.NDArray[np.float64]

_STEP_MM = 7.0
_PATH_WEIGHT = 0.45
_MURRAY = 2.75


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Segment i goes from `nodes[parents[i]]` to `nodes[i]` (LPS mm); node 0 is the root; radii in mm."""

    nodes: FloatArray
    parents: npt.NDArray[np.int64]
    radii: FloatArray


def grow_tree(root_path: FloatArray, targets: FloatArray, leaf_radius_mm: float, root_radius_mm: float) -> Tree:
    """Grow from `root_path` ((n, 3), first point is the root) to every target ((m, 3), LPS mm)."""
    limit = len(root_path) + len(targets) * 12 + 64
    nodes, parents, path = np.empty((limit, 3)), np.zeros(limit, np.int64), np.zeros(limit)
    count = len(root_path)
    nodes[:count] = root_path
    parents[1:count] = np.arange(count - 1)
    path[1:count] = np.cumsum(np.linalg.norm(np.diff(root_path, axis=0), axis=1))
    order = np.argsort(np.linalg.norm(targets - root_path[-1], axis=1))
    for target in targets[order]:
        gap = np.linalg.norm(nodes[:count] - target, axis=1)
        best = int(np.argmin(gap + _PATH_WEIGHT * path[:count]))
        pieces = int(min(10, max(1, np.ceil(gap[best] / _STEP_MM))))
        start, parent = nodes[best].copy(), best
        # A branch leaves along its parent's direction and bends towards its target.
        heading = start - nodes[parents[best]]
        heading = heading / max(float(np.linalg.norm(heading)), 1e-6) * gap[best] * 0.22
        for k in range(1, pieces + 1):
            t = k / pieces
            nodes[count] = start + t * (target - start) + heading * t * (1 - t)
            parents[count], path[count] = parent, path[parent] + gap[best] / pieces
            parent, count = count, count + 1
    return Tree(nodes[:count], parents[:count], _murray(parents[:count], leaf_radius_mm, root_radius_mm))


def _murray(parents: npt.NDArray[np.int64], leaf_mm: float, root_mm: float) -> FloatArray:
    load = np.zeros(len(parents))
    children = np.bincount(parents[1:], minlength=len(parents))
    load[children == 0] = leaf_mm**_MURRAY
    for node in range(len(parents) - 1, 0, -1):
        load[parents[node]] += load[node]
    radii = load ** (1 / _MURRAY)
    return np.minimum(radii, root_mm)


def draw_tree(
    canvas: Canvas, tree: Tree, hu: float, behind_hu: float, *, wall_mm: float = 0.0, at_least_mm: float = 0.0
) -> None:
    """Draw every segment of at least `at_least_mm` radius, `wall_mm` wider than the tree."""
    drawn = np.flatnonzero(tree.radii[1:] >= at_least_mm) + 1
    parents = tree.parents[drawn]
    narrow = tree.radii[drawn] + wall_mm
    wide = np.minimum(tree.radii[parents], tree.radii[drawn] * 1.35) + wall_mm
    canvas.draw_capsules(capsules(tree.nodes[parents], tree.nodes[drawn], wide, narrow), hu, behind_hu)
