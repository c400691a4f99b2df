"""Smaller files of the same weights: int8 or bfloat16 storage, kept only where the answers stay the same.

The convolutions' weights are stored in fewer bits and brought back to float32 inside the graph, so that every execution
provider runs them and only the weights are rounded. int8 has one scale for each output channel (symmetrical, as ONNX
DequantizeLinear takes it); bfloat16 keeps the exponent of float32.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from models.manifest import MANIFEST_NAME, load_manifest

Variant = Literal["int8", "bf16"]
# More than this lost on any grid, and the variant is not worth its smaller file.
LARGEST_LOGIT_DIFFERENCE = 0.1
SMALLEST_DICE = 0.98
LARGEST_LABEL_SHARE = 0.005
_SMALLEST_WEIGHTS = 256
_OUTPUTS = ("anatomy", "lesions", "study_logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a variant's answers lose against float32 over some grids, the worst of each, and the sizes of the files."""

    lesion_probability: float
    lesion_dice: float
    study_logit: float
    label_share: float
    bytes_float32: int
    bytes_variant: int

    @property
    def acceptable(self) -> bool:
        """Whether no answer moved by more than the limits of this module."""
        return (
            self.lesion_dice >= SMALLEST_DICE
            and self.study_logit <= LARGEST_LOGIT_DIFFERENCE
            and self.label_share <= LARGEST_LABEL_SHARE
        )


def write_variant(source: Path, target: Path, variant: Variant) -> None:
    """Write the graph of `source` with the weights of its convolutions in fewer bits."""
    model = onnx.load(source)
    graph = model.graph
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    # The output channels of a transposed convolution are the second axis of its weights.
    transposed = {node.input[1] for node in graph.node if node.op_type == "ConvTranspose"}
    kept, added, nodes = [], [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name not in weights or values.size < _SMALLEST_WEIGHTS:
            kept.append(tensor)
        elif variant == "int8":
            axis = 1 if tensor.name in transposed else 0
            stored, scale = _int8(values, axis)
            names = (f"{tensor.name}_int8", f"{tensor.name}_scale")
            added += [numpy_helper.from_array(stored, names[0]), numpy_helper.from_array(scale, names[1])]
            nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
        else:
            name = f"{tensor.name}_bf16"
            added.append(_bf16(values, name))
            nodes.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *body])
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _int8(values: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    others = tuple(a for a in range(values.ndim) if a != axis)
    scale = np.maximum(np.abs(values).max(axis=others), 1e-12) / 127.0
    stored = np.rint(values / np.expand_dims(scale, others)).astype(np.int8)
    return stored, scale.astype(np.float32)


def _bf16(values: npt.NDArray[np.float32], name: str) -> onnx.TensorProto:
    """The upper half of each float32, rounded to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, rounded.tobytes(), raw=True)


def measured_loss(float32: Path, variant: Path, grids: Sequence[npt.NDArray[np.float32]], threads: int) -> Loss:
    """Run both files over grids (1, 1, D, H, W) in HU."""
    before, after = (_session(path, threads) for path in (float32, variant))
    name = before.get_inputs()[0].name
    probability, dice, logit, share = 0.0, 1.0, 0.0, 0.0
    for hu in grids:
        (labels, lesions, logits), (labels_2, lesions_2, logits_2) = (
            [np.asarray(output) for output in session.run(list(_OUTPUTS), {name: hu})] for session in (before, after)
        )
        probability = max(probability, float(np.abs(lesions - lesions_2).max()))
        dice = min(dice, _dice(lesions >= 0.5, lesions_2 >= 0.5))
        logit = max(logit, float(np.abs(logits - logits_2).max()))
        share = max(share, float((labels != labels_2).mean()))
    return Loss(
        lesion_probability=probability,
        lesion_dice=dice,
        study_logit=logit,
        label_share=share,
        bytes_float32=float32.stat().st_size,
        bytes_variant=variant.stat().st_size,
    )


def adopt_variant(
    folder: Path, variant: Variant, grids: Sequence[npt.NDArray[np.float32]], threads: int
) -> tuple[Loss, bool]:
    """Put the variant in the place of a model folder's weights where its loss is acceptable, else leave all as it is.

    Returns the loss and whether the variant was taken. The evidence in `model.json` stays; it was measured in float32.
    """
    manifest = load_manifest(folder)
    weights, trial = folder / manifest.weights, folder / f"{variant}.part.onnx"
    write_variant(weights, trial, variant)
    loss = measured_loss(weights, trial, grids, threads)
    if not loss.acceptable:
        trial.unlink()
        return loss, False
    trial.replace(weights)
    adopted = manifest.model_copy(update={"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()})
    (folder / MANIFEST_NAME).write_text(adopted.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return loss, True


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Of all lesion channels together."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0
