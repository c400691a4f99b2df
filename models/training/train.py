"""Train the network: `python -m models.training.train CONFIG.toml RUN_FOLDER`.

Resumes from the newest checkpoint of the folder. The learning rate follows the step and the configured number of
steps, so a run may be shortened or lengthened between two starts. Every 20 steps a line of progress goes to
`progress.csv` and the curves to `progress.svg`.
"""

import argparse
import copy
import itertools
import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.manifest import MANIFEST_NAME
from models.training.curves import Progress, append_progress, write_curves
from models.training.dataset import Config, Samples, Sources, read_config, read_sources
from models.training.losses import anatomy_loss, lesion_loss
from models.training.network import ChestNet
from models.training.start import exported_network, normalise

CHECKPOINT = "checkpoint.pt"
# The manifest of the model that a run began with; not there where it began with none.
STARTED_FROM = "started_from.json"
OnProgress = Callable[[Progress], None]
_REPORT_EVERY = 20
_SAVE_EVERY = 50
_AVERAGE_OVER_STEPS = 150
_MOST_WORKERS = 8
_STARTING_BATCHES = 12


class UnusableCheckpoint(ValueError):
    """There is no checkpoint, it cannot be read, or it holds another network."""


def use_threads(count: int) -> None:
    """Processor threads of torch in this process."""
    torch.set_num_threads(count)


def is_emulated(precision: str) -> bool:
    """Whether this machine has no units for a precision: training in it then takes several times as long as float32."""
    if precision == "float32" or torch.cuda.is_available():
        return False
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up over 50 steps, then polynomial decay to nothing."""
    warm = min(1.0, (step + 1) / 50)
    left: float = max(0.0, 1.0 - step / config.steps) ** 0.9
    return config.learning_rate * warm * left + 1e-6


def batch_loss(net: nn.Module, batch: dict[str, Tensor], step: int, precision: str) -> tuple[Tensor, Tensor]:
    """(anatomy loss, lesion loss).

    To save time the anatomy is compared on every second voxel of each axis, lesions on every second slice and row,
    at an offset that moves on with `step`.
    """
    hu = batch["hu"].to(memory_format=torch.channels_last_3d)
    with torch.autocast(hu.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        anatomy, lesions = net(hu)
    z, y, x = step % 2, step // 2 % 2, step // 4 % 2
    anatomy = anatomy[:, :, z::2, y::2, x::2].float()
    lesions = lesions[:, :, z::2, y::2].float()
    labels, bits, unknown = batch["anatomy"], batch["lesions"][:, z::2, y::2], batch["unknown"][:, z::2, y::2]
    return anatomy_loss(anatomy, labels[:, z::2, y::2, x::2]), lesion_loss(lesions, bits, unknown)


def update_average(average: nn.Module, net: nn.Module, step: int) -> None:
    """Move the averaged weights towards the current ones; early steps are forgotten sooner."""
    rate = 1.0 / min(_AVERAGE_OVER_STEPS, 1 + step / 10)
    with torch.no_grad():
        for mean, now in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, rate)
            else:
                mean.copy_(now)


def batches(config: Config, sources: Sources, step: int) -> DataLoader[dict[str, Tensor]]:
    """The batches from `step` to the end of the run, made by other processes; the same ones however many these are.

    A single one keeps a GPU waiting. One processor is left to the network, and there is a limit because each holds
    batches ahead in shared memory. Samples follow from their index, and the loader keeps their order.
    """
    samples = Samples(sources, config, step * config.batch, config.steps * config.batch)
    workers = max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
    return DataLoader(samples, batch_size=config.batch, num_workers=workers, prefetch_factor=4)


def train(config: Config, sources: Sources, run: Path, on_progress: OnProgress = lambda progress: None) -> ChestNet:
    """Run or resume training in the folder `run`; returns the averaged network. `on_progress` hears every 20 steps.

    On the GPU where torch has one. A run that has its steps is left as it is. Raises FloatingPointError when the loss
    is no number, MemoryError when the GPU has too little; the last checkpoint stays. Raises UnusableCheckpoint where
    the folder holds another network, and what `models.training.start.exported_network` raises where that of
    `config.start_from` cannot be used.
    """
    try:
        return _trained(config, sources, run, on_progress)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"the GPU is too small for {config.batch} crops of {config.crop} voxels at once") from error


def _trained(config: Config, sources: Sources, run: Path, on_progress: OnProgress) -> ChestNet:
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (run / CHECKPOINT).exists():
        net = ChestNet(config.features).to(device)
    elif config.start_from is None:
        net = ChestNet(config.features).to(device)
        (run / STARTED_FROM).unlink(missing_ok=True)
    else:
        net = exported_network(config.start_from, config.features).to(device)
        # The configuration may change before the export, and so may that folder.
        (run / STARTED_FROM).write_bytes((config.start_from / MANIFEST_NAME).read_bytes())
        first = itertools.islice(batches(config, sources, 0), _STARTING_BATCHES)
        normalise(net, [batch["hu"].to(device) for batch in first])
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    average = copy.deepcopy(net)
    step = _resume(run / CHECKPOINT, net, average, optimizer)
    if step >= config.steps:
        return average
    net = net.to(memory_format=torch.channels_last_3d)
    net.train()
    began, recent = time.monotonic(), []
    for batch in batches(config, sources, step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        batch = {name: values.to(device) for name, values in batch.items()}
        anatomy, lesions = batch_loss(net, batch, step, config.precision)
        if not torch.isfinite(anatomy + lesions):
            raise FloatingPointError(f"step {step}: the loss is {anatomy:.3g} + {lesions:.3g} in {config.precision}")
        optimizer.zero_grad(set_to_none=True)
        (anatomy + lesions).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient is {norm:.3g} in {config.precision}")
        optimizer.step()
        step += 1
        update_average(average, net, step)
        recent.append((float(anatomy.detach()), float(lesions.detach())))
        if step % _REPORT_EVERY == 0:
            on_progress(_report(run, step, time.monotonic() - began, recent))
            recent = []
        if step % _SAVE_EVERY == 0 or step == config.steps:
            _save(run / CHECKPOINT, step, net, average, optimizer)
    return average


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `train` saved, on `device`. Raises UnusableCheckpoint."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except FileNotFoundError as error:
        raise UnusableCheckpoint(f"{path} is not there: the run has not reached step {_SAVE_EVERY} yet") from error
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UnusableCheckpoint(f"{path} cannot be read as a checkpoint") from error
    return state


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give `net` the weights of the checkpoint `path`. Raises UnusableCheckpoint where they are another network's."""
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UnusableCheckpoint(f"{path} holds another network: were `features` changed since?") from error


def steps_done(run: Path) -> int:
    """Steps in the checkpoint of a run's folder, 0 where there is none. Raises UnusableCheckpoint."""
    path = run / CHECKPOINT
    return int(read_checkpoint(path, torch.device("cpu"))["step"]) if path.exists() else 0


def _resume(path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = read_checkpoint(path, next(net.parameters()).device)
    load_weights(net, state["net"], path)
    load_weights(average, state["average"], path)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(path: Path, step: int, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {
        "step": step,
        "net": net.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def _report(run: Path, step: int, seconds: float, losses: list[tuple[float, float]]) -> Progress:
    anatomy, lesions = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    progress = Progress(step, seconds, anatomy, lesions)
    append_progress(run, progress)
    write_curves(run)
    return progress


def _print(progress: Progress) -> None:
    print(
        f"step {progress.step}  {progress.seconds:.0f} s  anatomy {progress.anatomy:.3f}  "
        f"lesions {progress.lesions:.3f}",
        flush=True,
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    use_threads(arguments.threads)
    config = read_config(arguments.config)
    train(config, read_sources(config), arguments.run, _print)


if __name__ == "__main__":
    main()
