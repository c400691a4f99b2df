"""The one place that runs the network: ONNX weights checked against their manifest, through onnxruntime."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.errors import BadOutput, ManifestMismatch
from models.manifest import ModelManifest, load_manifest

ExecutionProvider = Literal["cpu", "cuda", "openvino", "cann"]

PROVIDERS: dict[ExecutionProvider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cann": "CANNExecutionProvider",
}

_PATCHES_AT_ONCE = 64
_STRANGENESS = "strangeness"
_DTYPES = {"anatomy": "tensor(uint8)", "lesions": "tensor(float)", "study_logits": "tensor(float)"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadOutputs:
    """What the network says about one study, on the network's grid (D, H, W).

    `anatomy` uint8 (D, H, W), indices into `ModelManifest.anatomy`; `lesions` float32 (L, D, H, W), voxel
    probabilities of `ModelManifest.lesions`, which may overlap; `study_logits` float32 (L,), uncalibrated;
    `strangeness` how far the image lies from those the model knows, None where the manifest has no `familiarity`.
    """

    anatomy: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.float32]
    study_logits: npt.NDArray[np.float32]
    strangeness: float | None = None


class ModelSession:
    """Loaded weights and their manifest. Thread-safe: onnxruntime allows concurrent runs of one session."""

    def __init__(
        self,
        manifest: ModelManifest,
        session: onnxruntime.InferenceSession,
        nodules: onnxruntime.InferenceSession | None = None,
    ) -> None:
        self.manifest = manifest
        self._session = session
        self._nodules = nodules

    @classmethod
    def open(cls, folder: Path, execution_provider: ExecutionProvider = "cpu", *, threads: int | None = None) -> Self:
        """Load the model of a folder; `threads` None leaves the choice to onnxruntime.

        Raises ManifestMismatch when digest, inputs or outputs are not those of the manifest, or when the
        installed onnxruntime lacks the execution provider.
        """
        manifest = load_manifest(folder)
        provider = _provider(execution_provider)
        session = _open(folder, manifest.weights, manifest.sha256, provider, threads)
        _check_interface(session, manifest)
        if manifest.nodules is None:
            return cls(manifest, session)
        nodules = _open(folder, manifest.nodules.weights, manifest.nodules.sha256, provider, threads)
        _check_patches(nodules, manifest.nodules.input)
        return cls(manifest, session, nodules)

    def run(self, hu: npt.NDArray[np.float32]) -> HeadOutputs:
        """Answers for a grid (1, 1, D, H, W) in HU as `manifest.input` describes it. Raises BadOutput."""
        grid = hu.shape[2:]
        multiple = self.manifest.input.multiple_of
        if hu.ndim != 5 or hu.shape[:2] != (1, 1) or any(n == 0 or n % multiple for n in grid):
            raise ValueError(f"the network takes (1, 1, D, H, W) in multiples of {multiple}, not {hu.shape}")
        names = list(_dtypes(self.manifest))
        outputs = self._session.run(names, {self.manifest.input.name: hu.astype(np.float32, copy=False)})
        anatomy, lesions, study_logits = (np.asarray(output) for output in outputs[:3])
        strangeness = float(np.asarray(outputs[3])[0]) if len(outputs) > 3 else None
        kinds = len(self.manifest.lesions)
        expected = ((1, *grid), (1, kinds, *grid), (1, kinds))
        if (anatomy.shape, lesions.shape, study_logits.shape) != expected:
            raise BadOutput(f"output shapes {anatomy.shape}, {lesions.shape}, {study_logits.shape}")
        numbers = (lesions, study_logits, 0.0 if strangeness is None else strangeness)
        if not all(np.isfinite(values).all() for values in numbers):
            raise BadOutput("the network's output is not finite")
        if int(anatomy.max()) >= len(self.manifest.anatomy):
            raise BadOutput(f"anatomy class {int(anatomy.max())} is unknown to the manifest")
        return HeadOutputs(
            anatomy=anatomy[0], lesions=lesions[0], study_logits=study_logits[0], strangeness=strangeness
        )

    def judge(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits (n,) of "nodule", uncalibrated, for patches of candidates. Raises BadOutput."""
        if self._nodules is None or self.manifest.nodules is None:
            raise ValueError("this model has no network for nodules")
        batches = np.split(patches, range(_PATCHES_AT_ONCE, len(patches), _PATCHES_AT_ONCE))
        logits = [self._nodules.run(None, {self.manifest.nodules.input: b})[0] for b in batches if len(b)]
        joined = np.concatenate([np.zeros(0, np.float32), *map(np.asarray, logits)])
        if joined.shape != (len(patches),) or not np.isfinite(joined).all():
            raise BadOutput("the nodule network's output is not one finite number a patch")
        return joined


def _dtypes(manifest: ModelManifest) -> dict[str, str]:
    return _DTYPES if manifest.familiarity is None else _DTYPES | {_STRANGENESS: "tensor(float)"}


def _provider(execution_provider: ExecutionProvider) -> str:
    provider = PROVIDERS.get(execution_provider)
    if provider is None:
        raise ManifestMismatch(f"unknown execution provider {execution_provider!r}; known: {', '.join(PROVIDERS)}")
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ManifestMismatch(
            f"the installed onnxruntime has no {provider} (execution provider {execution_provider!r}); "
            f"it has {', '.join(available)}"
        )
    return provider


def _open(folder: Path, name: str, sha256: str, provider: str, threads: int | None) -> onnxruntime.InferenceSession:
    weights = checked_weights(folder, name, sha256)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Weights in other files than the one that the digest covers are refused: this is no folder to find them in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # Without a plan for the memory of a whole run each run takes what the last one gave back: 40 % less at the peak.
    options.enable_mem_pattern = False
    # Threads that wait busily take time from what else runs on few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(weights, options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no other base
        raise ManifestMismatch(f"onnxruntime cannot load {name}: {error}") from error


def checked_weights(folder: Path, name: str, sha256: str) -> bytes:
    """The file `name` of a model folder. Raises ManifestMismatch where it is not there or has another digest."""
    path = folder / name
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ManifestMismatch(f"the weights {name} cannot be read from {folder}") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != sha256:
        raise ManifestMismatch(f"{path} has SHA-256 {digest}, the manifest says {sha256}")
    return weights


def _check_patches(session: onnxruntime.InferenceSession, name: str) -> None:
    inputs = [(entry.name, entry.type, entry.shape[1:]) for entry in session.get_inputs()]
    if inputs != [(name, "tensor(uint8)", [2, 24, 24, 24])] or len(session.get_outputs()) != 1:
        raise ManifestMismatch(f"inputs of the nodule network are {inputs}, not {name!r} of (n, 2, 24, 24, 24) uint8")


def _check_interface(session: onnxruntime.InferenceSession, manifest: ModelManifest) -> None:
    inputs = [(entry.name, entry.type, len(entry.shape), entry.shape[:2]) for entry in session.get_inputs()]
    if inputs != [(manifest.input.name, "tensor(float)", 5, [1, 1])]:
        raise ManifestMismatch(f"inputs are {inputs}, not one float {manifest.input.name!r} of (1, 1, D, H, W)")
    outputs = {entry.name: (entry.type, len(entry.shape), entry.shape) for entry in session.get_outputs()}
    wanted = _dtypes(manifest)
    if {name: dtype for name, (dtype, _, _) in outputs.items()} != wanted:
        raise ManifestMismatch(f"outputs are {outputs}, not {wanted}")
    kinds = len(manifest.lesions)
    ranks = tuple(outputs[name][1] for name in _DTYPES)
    if ranks != (4, 5, 2) or outputs["lesions"][2][1] != kinds or outputs["study_logits"][2][1] != kinds:
        raise ManifestMismatch(f"outputs are {outputs}; the manifest names {kinds} lesion kinds")
