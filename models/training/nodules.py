"""Train the network that judges nodule candidates: `python -m models.training.nodules DATA_ROOT RUN_FOLDER`.

Scenes (lungs with inserted nodules) go through the product's own candidate search; what lies on a nodule is a
positive, what lies on none a negative. Patches of each scene are kept in the run folder, and training resumes from
its checkpoint. Half of the negatives of a batch come from those the network last found hardest. With `--start-from` a
run begins with the network of a model folder instead of with noise.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.nodules.candidates import MAXIMUM_CANDIDATES, cut_patches, find_candidates
from models.training.lesions import Array
from models.training.nodule_network import NoduleNet
from models.training.nodule_scenes import (
    SMALLEST_MM,
    Host,
    Inserted,
    Scene,
    make_scene,
    one_lung,
    phantom_host,
    read_host,
)
from models.training.nodule_shapes import read_shapes
from models.training.start import exported_nodule_network, normalise

CHECKPOINT = "nodules.pt"
HOSTS = {
    "training/volumes/cap_001.nii.gz": "CC BY 4.0",
    "training/volumes/contrast_c3n_00247.nii.gz": "CC BY",
    "ct/contrast_c3n_00249": "CC BY",
}
SHAPES = "training/labels/lungs"
_PHANTOM_SEEDS = (901, 902, 904, 905, 906, 907, 908, 911)
_PHANTOM_SHARE = 0.35
_NODULES_PER_LUNG = 20
_JITTERED = 2
_BATCH = 64
_POSITIVE_SHARE = 0.4
_LEARNING_RATE = 2e-3
_REPORT_EVERY = 25
_STARTING_BATCHES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """(n, 2, 24, 24, 24) uint8 patches, (n,) whether each shows a nodule."""

    values: npt.NDArray[np.uint8]
    nodule: npt.NDArray[np.bool_]


def labelled_patches(scene: Scene, most: int, rng: np.random.Generator | None = None) -> Patches:
    """The candidates of a scene with their labels, none where neither holds; with `rng` jittered centres as well."""
    found = find_candidates(scene.hu, scene.lung, most).indices
    places, labels = [], []
    for index in found:
        hit = nodule_at(index, scene.nodules)
        if hit is None:
            if not any(np.linalg.norm(index - n.centre) < n.diameter_mm / 2 + 5 for n in scene.nodules):
                places.append(index)
                labels.append(False)
        elif hit.diameter_mm >= SMALLEST_MM:
            places.append(index)
            labels.append(True)
    if rng is not None:
        for nodule in scene.nodules:
            if nodule.diameter_mm >= SMALLEST_MM:
                off = rng.normal(0, min(1.5, 0.12 * nodule.diameter_mm), (_JITTERED, 3))
                places += list(np.array(nodule.centre) + off)
                labels += [True] * _JITTERED
    return Patches(cut_patches(scene.hu, np.array(places)), np.array(labels))


def nodule_at(index: npt.NDArray[np.float64], nodules: Sequence[Inserted]) -> Inserted | None:
    """The nodule whose centre is within 3 mm, or 0.35 of its diameter, of an index."""
    near = [n for n in nodules if np.linalg.norm(index - n.centre) < max(3.0, 0.35 * n.diameter_mm)]
    return min(near, key=lambda n: float(np.linalg.norm(index - n.centre)), default=None)


def make_patches(data: Path, run: Path, scenes: int, seed: int) -> Patches:
    """Patches of `scenes` scenes; those already in the run folder are read."""
    hosts: list[Host] = []
    shapes: tuple[Array, ...] = ()
    parts = []
    for number in range(scenes):
        path = run / f"scene_{seed}_{number:04d}.npz"
        if not path.exists():
            if not hosts:
                hosts = [read_host(data / place) for place in HOSTS] + [phantom_host(s) for s in _PHANTOM_SEEDS]
                shapes = read_shapes(data / SHAPES)
            rng = np.random.default_rng((seed, number))
            phantom = rng.random() < _PHANTOM_SHARE
            host = hosts[len(HOSTS) + rng.integers(len(_PHANTOM_SEEDS)) if phantom else rng.integers(len(HOSTS))]
            scene = make_scene(one_lung(host, rng), shapes, _NODULES_PER_LUNG, rng)
            made = labelled_patches(scene, MAXIMUM_CANDIDATES // 2, rng)
            unfinished = path.with_suffix(".part")
            with unfinished.open("wb") as file:
                np.savez(file, values=made.values, nodule=made.nodule)
            unfinished.replace(path)
            print(f"scene {number}  {made.nodule.sum()} of {len(made.nodule)} patches show a nodule", flush=True)
        stored = np.load(path)
        parts.append(Patches(stored["values"], stored["nodule"]))
    return Patches(np.concatenate([p.values for p in parts]), np.concatenate([p.nodule for p in parts]))


def train(patches: Patches, run: Path, steps: int, seed: int, start_from: Path | None = None) -> NoduleNet:
    """Train or resume in the folder `run`; deterministic by seed.

    Raises what `models.training.start.exported_nodule_network` raises where that of `start_from` cannot be used.
    """
    torch.manual_seed(seed)
    if start_from is None or (run / CHECKPOINT).exists():
        net = NoduleNet()
    else:
        net = exported_nodule_network(start_from)
        first_seen = np.random.default_rng(seed).choice(len(patches.nodule), (_STARTING_BATCHES, _BATCH))
        normalise(net, [torch.from_numpy(patches.values[batch]).float() for batch in first_seen])
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=1e-3)
    hardness = torch.ones(len(patches.nodule))
    first = _resume(run / CHECKPOINT, net, optimizer, hardness)
    positives, negatives = (np.flatnonzero(patches.nodule == wanted) for wanted in (True, False))
    began = time.monotonic()
    net = net.to(memory_format=torch.channels_last_3d).train()
    losses: list[float] = []
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / 30) * (1 - step / steps) ** 0.9 + 1e-6
        chosen = _draw(positives, negatives, hardness, rng)
        inputs = _turned(torch.from_numpy(patches.values[chosen]).float(), rng)
        target = torch.from_numpy(patches.nodule[chosen]).float()
        logits = net(inputs.contiguous(memory_format=torch.channels_last_3d))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, 0.98 * target + 0.01, reduction="none")
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        hardness[chosen] = loss.detach()
        losses.append(float(loss.detach().mean()))
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1}  {time.monotonic() - began:.0f} s  loss {np.mean(losses):.3f}", flush=True)
            losses = []
            _save(run / CHECKPOINT, step + 1, net, optimizer, hardness)
    return net.eval()


def _draw(
    positives: npt.NDArray[np.intp], negatives: npt.NDArray[np.intp], hardness: Tensor, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    wanted = round(_POSITIVE_SHARE * _BATCH)
    hard = (_BATCH - wanted) // 2
    pool = rng.choice(negatives, min(len(negatives), 12 * hard), replace=False)
    hardest = pool[np.argsort(-hardness[pool].numpy(), kind="stable")[: 2 * hard]]
    return np.concatenate(
        [
            rng.choice(positives, wanted),
            rng.choice(hardest, hard),
            rng.choice(negatives, _BATCH - wanted - hard),
        ]
    )


def _turned(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """A batch mirrored, turned in the plane and changed in brightness and contrast, all patches alike but the HU."""
    flips = [axis for axis in (2, 3, 4) if rng.random() < 0.5]
    patches = torch.rot90(torch.flip(patches, flips), int(rng.integers(4)), (3, 4))
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(patches), 1, 1, 1, 1))).float()
    shift = torch.from_numpy(rng.normal(0, 5, (len(patches), 1, 1, 1, 1))).float()
    return (patches * gain + shift).clamp(0, 255)


def _resume(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, hardness: Tensor) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    if len(state["hardness"]) == len(hardness):
        hardness.copy_(state["hardness"])
    return int(state["step"])


def _save(path: Path, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, hardness: Tensor) -> None:
    state = {"step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "hardness": hardness}
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="model folder whose network for nodules is trained further")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run.mkdir(parents=True, exist_ok=True)
    patches = make_patches(arguments.data, arguments.run, arguments.scenes, arguments.seed)
    train(patches, arguments.run, arguments.steps, arguments.seed, arguments.start_from)


if __name__ == "__main__":
    main()
