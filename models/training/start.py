"""Start a run from the network of a model folder instead of from noise.

An exported network has its batch normalisations folded into the convolutions, and a folded one cannot be trained as it
was. They are put back so that the network answers what it answered and each normalisation again does what it is for:
its statistics are measured on training samples, and its scale and shift undo them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from models.manifest import load_manifest
from models.session import checked_weights
from models.training.network import Block, ChestNet
from models.training.nodule_network import NoduleNet

_OF_THE_NETWORK = "net."


def exported_network(folder: Path, features: tuple[int, ...]) -> ChestNet:
    """The network of a model folder; it answers as the exported one, but its normalisations do nothing yet.

    Raises models.errors.ManifestMismatch where the folder holds no model or other weights than its manifest says,
    ValueError where its network has other features, or its weights are not stored as float32.
    """
    net = ChestNet(features)
    manifest = load_manifest(folder)
    weights = _stored(checked_weights(folder, manifest.weights, manifest.sha256))
    shapes = {name: tensor.shape for name, tensor in _folded_weights(net).items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(f"{folder} holds another network than `features` asks for, or not in float32")
    with torch.no_grad():
        for name, tensor in _folded_weights(net).items():
            tensor.copy_(weights[name])
        for norm in _normalisations(net):
            # eps is part of what it divides by.
            norm.running_var.fill_(1.0 - norm.eps)
    return net


def exported_nodule_network(folder: Path) -> NoduleNet:
    """The same of the network for nodules, as `models.training.nodules_evaluate` exports it.

    Raises models.errors.ManifestMismatch where the folder holds no model or other weights than its manifest says,
    ValueError where it holds no network for nodules.
    """
    section = load_manifest(folder).nodules
    if section is None:
        raise ValueError(f"{folder} holds no network for nodules")
    graph = onnx.load_model_from_string(checked_weights(folder, section.weights, section.sha256)).graph
    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    folded = [node.input[1:] for node in graph.node if node.op_type == "Conv"]
    net = NoduleNet()
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv3d)]
    with torch.no_grad():
        for (weight, shift), convolution, norm in zip(folded, convolutions, _normalisations(net), strict=True):
            convolution.weight.copy_(stored[weight])
            norm.bias.copy_(stored[shift])
            norm.running_var.fill_(1.0 - norm.eps)
        for name, tensor in net.named_parameters():
            if name.startswith("answer."):
                tensor.copy_(stored[_OF_THE_NETWORK + name])
    return net


def normalise(net: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Let each normalisation divide by what it sees on `inputs` of the network, and scale and shift it back.

    `net` is one of the two above; its answers stay the same.
    """
    seen: dict[nn.BatchNorm3d, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in _normalisations(net)}
    hooks = [norm.register_forward_pre_hook(_noting(moments)) for norm, moments in seen.items()]
    net.eval()
    with torch.no_grad():
        for one in inputs:
            net(one)
        for norm, moments in seen.items():
            mean, square = (torch.stack(column).mean(dim=0) for column in zip(*moments, strict=True))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((square - mean**2).clamp(min=0.0))
            norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
            norm.bias.add_(norm.running_mean)
    for hook in hooks:
        hook.remove()


def _normalisations(net: nn.Module) -> list[nn.BatchNorm3d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm3d)]


def _stored(weights: bytes) -> dict[str, Tensor]:
    """What is stored as float32 in the file itself: another one that it names is not what the digest covers."""
    try:
        model = onnx.load_model_from_string(weights)
    except DecodeError as error:
        raise ValueError("the weights to start from are no ONNX file") from error
    return {
        tensor.name.removeprefix(_OF_THE_NETWORK): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
        if tensor.name.startswith(_OF_THE_NETWORK)
        and tensor.data_type == TensorProto.FLOAT
        and tensor.data_location != TensorProto.EXTERNAL
    }


def _folded_weights(net: ChestNet) -> Mapping[str, Tensor]:
    """Where each weight of an exported network belongs; the shift of a normalisation takes its convolution's."""
    state = dict(net.state_dict())
    for name, module in net.named_modules():
        if isinstance(module, Block):
            shift = state[f"{name}.1.bias"]
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.1.")}
            state[f"{name}.0.bias"] = shift
    return state


def _noting(moments: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Hears what goes into a normalisation, and keeps its mean and mean square by channel."""

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        moments.append((values.mean(dim=(0, 2, 3, 4)), (values**2).mean(dim=(0, 2, 3, 4))))

    return note
