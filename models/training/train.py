"""Train the network: `python -m models.training.train CONFIG.toml RUN_FOLDER`.

Resumes from the newest checkpoint of the folder. The learning rate follows the step and the configured number of
steps, so a run may be shortened or lengthened between two starts. Every 20 steps a line of progress goes to
`progress.csv` and the curves to `progress.svg`.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.training.curves import PROGRESS_NAME, Progress, write_curves
from models.training.dataset import Config, Samples, Sources, read_config, read_sources
from models.training.losses import anatomy_loss, lesion_loss
from models.training.network import ChestNet

CHECKPOINT = "checkpoint.pt"
OnProgress = Callable[[Progress], None]
_REPORT_EVERY = 20
_SAVE_EVERY = 50
_AVERAGE_OVER_STEPS = 150


def use_threads(count: int) -> None:
    """Processor threads of torch in this process."""
    torch.set_num_threads(count)


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


def train(config: Config, sources: Sources, run: Path, on_progress: OnProgress = lambda progress: None) -> ChestNet:
    """Run or resume training in the folder `run`; returns the averaged network. `on_progress` hears every 20 steps.

    On the GPU where torch has one. Raises FloatingPointError when the loss is no number; the last checkpoint stays.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = ChestNet(config.features).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    average = copy.deepcopy(net)
    step = _resume(run / CHECKPOINT, net, average, optimizer)
    net = net.to(memory_format=torch.channels_last_3d)
    net.train()
    samples = Samples(sources, config, step * config.batch, config.steps * config.batch)
    loader = DataLoader(samples, batch_size=config.batch, num_workers=1, prefetch_factor=4)
    began, recent = time.monotonic(), []
    for batch in loader:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        batch = {name: values.to(device) for name, values in batch.items()}
        anatomy, lesions = batch_loss(net, batch, step, config.precision)
        if not torch.isfinite(anatomy + lesions):
            raise FloatingPointError(f"step {step}: the loss is {anatomy:.3g} + {lesions:.3g} in {config.precision}")
        optimizer.zero_grad(set_to_none=True)
        (anatomy + lesions).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0, error_if_nonfinite=True)
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


def _resume(path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=next(net.parameters()).device)
    net.load_state_dict(state["net"])
    average.load_state_dict(state["average"])
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
    with (run / PROGRESS_NAME).open("a") as progress:
        progress.write(f"{step},{seconds:.0f},{anatomy:.4f},{lesions:.4f}\n")
    write_curves(run)
    return Progress(step, seconds, anatomy, lesions)


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
