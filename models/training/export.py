"""Write trained weights as ONNX: `python -m models.training.export CONFIG.toml RUN_FOLDER OUT.onnx`.

Batch normalisation is folded into the convolutions, windows and argmax are part of the graph, the grid is dynamic.
The written file is run by onnxruntime against torch and the largest differences are printed.
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.training.dataset import read_config
from models.training.network import Block, ChestNet, ExportedNet, Strangeness, StudyHead
from models.training.train import CHECKPOINT, load_weights, read_checkpoint

INPUT_NAME = "hu"
OUTPUT_NAMES = ("anatomy", "lesions", "study_logits", "strangeness")
OPSET = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Largest absolute differences between torch and onnxruntime on one grid, and the share of unequal labels."""

    lesions: float
    study_logits: float
    strangeness: float
    anatomy_share: float


def trained_network(features: tuple[int, ...], checkpoint: Path) -> ChestNet:
    """The averaged network of a checkpoint, ready to answer. Raises UnusableCheckpoint."""
    net = ChestNet(features)
    load_weights(net, read_checkpoint(checkpoint, torch.device("cpu"))["average"], checkpoint)
    return net.eval()


def folded(net: ChestNet) -> ChestNet:
    """A copy whose batch normalisations are part of their convolutions."""
    net = copy.deepcopy(net).eval()
    for block in [module for module in net.modules() if isinstance(module, Block)]:
        block[0] = fuse_conv_bn_eval(block[0], block[1])
        block[1] = nn.Identity()
    return net


def export(net: ChestNet, study: StudyHead, strangeness: Strangeness, path: Path) -> None:
    """Write the graph of `ExportedNet` with dynamic D, H, W."""
    graph = ExportedNet(folded(net), study, strangeness).eval()
    axes = {2: "depth", 3: "height", 4: "width"}
    with torch.no_grad():
        torch.onnx.export(
            graph,
            (torch.zeros(1, 1, 32, 48, 64),),
            str(path),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={
                INPUT_NAME: axes,
                "anatomy": {1: "depth", 2: "height", 3: "width"},
                "lesions": axes,
            },
            opset_version=OPSET,
            dynamo=False,
        )


def unfitted(net: ChestNet) -> Strangeness:
    """Stands where no studies have been seen yet."""
    return Strangeness(torch.zeros(net.summary_channels), torch.eye(net.summary_channels))


def compare(
    net: ChestNet, study: StudyHead, strangeness: Strangeness, path: Path, shape: tuple[int, int, int], seed: int
) -> Difference:
    """Run torch and onnxruntime on the same smooth random HU grid."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(-300, 500, (1, 1, 6, 6, 6)).astype(np.float32))
    hu = nn.functional.interpolate(coarse, size=shape, mode="trilinear")
    with torch.no_grad():
        outputs = ExportedNet(net, study, strangeness).eval()(hu)
    anatomy, lesions, logits, strange = (output.numpy() for output in outputs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [np.asarray(output) for output in session.run(list(OUTPUT_NAMES), {INPUT_NAME: hu.numpy()})]
    return Difference(
        anatomy_share=float((anatomy != found[0]).mean()),
        lesions=float(np.abs(lesions - found[1]).max()),
        study_logits=float(np.abs(logits - found[2]).max()),
        strangeness=float(np.abs(strange - found[3]).max()),
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    net = trained_network(read_config(arguments.config).features, arguments.run / CHECKPOINT)
    study, strangeness = StudyHead(), unfitted(net)
    export(net, study, strangeness, arguments.out)
    print(compare(net, study, strangeness, arguments.out, (64, 96, 112), seed=1))


if __name__ == "__main__":
    main()
