"""Decoding pixels in processes of their own: a decoder that crashes, hangs or eats memory costs one series, no more.

The processes are started for one series, know nothing of the service's environment, and are fed through their standard
input. They answer with bytes, never with objects: what a decoder that was taken over by its input says is not executed.
"""

import fcntl
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event, Timer
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imaging.codecs import decode_frame
from imaging.errors import InconsistentSeries, UnreadableInstance
from imaging.pixels import Rescale, StoredPixels, to_hu, to_hu_in_place

if TYPE_CHECKING:  # a decoding process has no use for it, and would wait for pydicom
    from imaging.headers import Slice

MEMORY_LIMIT_BYTES = 1 << 30
_MAXIMUM_PROCESSES = 4
# Fewer are decoded by the time that a second process would have started.
_PLANES_FOR_A_PROCESS = 16
# A JPEG 2000 slice takes 0.04 s: this is for slow and busy machines, and what a hanging decoder may cost.
_TIME_LIMIT_S, _TIME_LIMIT_PER_PLANE_S = 60.0, 0.5
# Should the parent be gone, nobody else would end a decoder that hangs.
_CPU_LIMIT_S = 3600
_PIPE_BYTES = 1 << 20
# -P: a folder of images may hold an imaging.py of somebody else's.
_DECODER = (sys.executable, "-P", "-c", "from imaging.decoding import serve; serve()")
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG")
_DECODED, _UNREADABLE, _INCONSISTENT = b"=", b"?", b"!"
_LONGEST_REASON = 200
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlane:
    """A plane in its file, to become slice `index` of a volume; without `pixels` pydicom finds them."""

    index: int
    path: Path
    frame_number: int | None
    pixels: StoredPixels | None
    rescale: Rescale


Task = tuple[tuple[StoredPlane, ...], tuple[int, int]]


def plane_of(index: int, image: "Slice") -> StoredPlane:
    """The plane of an image that becomes slice `index` of a volume."""
    return StoredPlane(
        index=index,
        path=image.path,
        frame_number=image.frame_number,
        pixels=image.pixels,
        rescale=Rescale(slope=image.rescale_slope or 1.0, intercept=image.rescale_intercept or 0.0),
    )


def decode_into(
    hu: npt.NDArray[np.int16],
    planes: Sequence[StoredPlane],
    *,
    decoder: Sequence[str] = _DECODER,
    time_limit_s: float | None = None,
) -> None:
    """Fill the slices of `hu` (slice, row, column) that `planes` name, planes of one file side by side.

    Raises UnreadableInstance where a plane cannot be decoded, also when the decoder dies of it or takes too long, and
    InconsistentSeries for a plane of another size. `decoder` is the command of a process that calls `serve`.
    """
    wanted = math.ceil(len(planes) / _PLANES_FOR_A_PROCESS)
    count = min(_MAXIMUM_PROCESSES, len(os.sched_getaffinity(0)), wanted)
    limit_s = time_limit_s or _TIME_LIMIT_S + _TIME_LIMIT_PER_PLANE_S * len(planes)
    tasks = deque(_tasks(planes, 4 * count))
    overdue = Event()
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    processes: list[subprocess.Popen[bytes]] = []

    def end_all() -> None:
        for process in processes:
            process.kill()

    def end_overdue() -> None:
        overdue.set()
        end_all()

    timer = Timer(limit_s, end_overdue)
    try:
        for _ in range(count):
            processes.append(
                subprocess.Popen(
                    decoder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            )
        timer.start()
        with ThreadPoolExecutor(count) as pool:
            waiting = [pool.submit(_drive, process, tasks, hu) for process in processes]
            try:
                done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            finally:
                end_all()
        if overdue.is_set():
            raise UnreadableInstance(f"pixels cannot be decoded (it took longer than {limit_s:.0f} s)")
        for finished in done:
            finished.result()
    finally:
        timer.cancel()
        end_all()
        for process in processes:
            process.communicate()


def _tasks(planes: Sequence[StoredPlane], parts: int) -> Iterator[tuple[StoredPlane, ...]]:
    """Planes of one file together, those of a long one in `parts`."""
    in_order = sorted(planes, key=lambda p: (p.path, p.frame_number or 1))
    for _, group in groupby(in_order, key=lambda p: p.path):
        of_file = tuple(group)
        size = math.ceil(len(of_file) / parts)
        yield from (of_file[start : start + size] for start in range(0, len(of_file), size))


def _drive(process: subprocess.Popen[bytes], tasks: deque[tuple[StoredPlane, ...]], hu: npt.NDArray[np.int16]) -> None:
    """Have one process decode tasks until none is left."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(PermissionError):  # it is only faster; the system limits what all pipes of a user may hold
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    while True:
        try:
            planes = tasks.popleft()
        except IndexError:
            return
        try:
            pickle.dump((planes, hu.shape[1:]), process.stdin)
            process.stdin.flush()
            for plane in planes:
                _receive(process.stdout, hu[plane.index], plane.index)
        except (EOFError, BrokenPipeError) as error:
            raise UnreadableInstance(f"pixels cannot be decoded ({_end_of(process)})") from error


def _receive(answers: IO[bytes], plane_hu: npt.NDArray[np.int16], index: int) -> None:
    kind = answers.read(1)
    if kind == _DECODED:
        if answers.readinto(plane_hu.data.cast("B")) != plane_hu.nbytes:  # type: ignore[attr-defined]
            raise EOFError
        return
    reason = "".join(c for c in answers.read(_LONGEST_REASON).decode("ascii", "replace") if c.isprintable())
    if kind == _INCONSISTENT:
        raise InconsistentSeries(f"image {index + 1} is {reason}, not {plane_hu.shape}")
    if kind == _UNREADABLE:
        raise UnreadableInstance(f"pixels cannot be decoded ({reason})")
    raise EOFError


def _end_of(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"the decoder was ended by {signal.Signals(-code).name}" if code < 0 else f"the decoder ended with {code}"


def serve(decode: Callable[[Task], Iterator[npt.NDArray[np.int16]]] | None = None) -> None:
    """What a decoding process does: answer tasks until its standard input ends or one fails."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT_S, _CPU_LIMIT_S))
    for forbidden in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(forbidden, (0, 0))
    # A library that prints must not print into the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            task: Task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            for plane_hu in (decode or decode_planes)(task):
                answers.write(_DECODED)
                answers.write(np.ascontiguousarray(plane_hu).data)
            answers.flush()
        except InconsistentSeries as error:
            _refuse(answers, _INCONSISTENT, str(error))
            return
        except MemoryError:
            _refuse(answers, _UNREADABLE, f"it takes more than {MEMORY_LIMIT_BYTES >> 20} MiB")
            return
        except Exception as error:  # noqa: BLE001
            # Codecs and parser fail in many ways on damaged bytes, and their messages may quote them.
            _refuse(answers, _UNREADABLE, type(error).__name__)
            return


def _refuse(answers: IO[bytes], kind: bytes, reason: str) -> None:
    answers.write(kind + reason.encode("ascii", "replace"))
    answers.close()


def decode_planes(task: Task) -> Iterator[npt.NDArray[np.int16]]:
    """HU of planes of one file, one after the other. Raises whatever the codecs and pydicom raise."""
    planes, shape = task
    pixels = planes[0].pixels
    if pixels is None:
        # Takes longer to import than a series of JPEG-LS to decode.
        from imaging.odd_pixels import decode_file

        frames, padding = decode_file(planes[0].path)
        for plane in planes:
            stored = _of_shape(frames[(plane.frame_number or 1) - 1], shape)
            yield to_hu(stored, plane.rescale, padding)
        return
    with planes[0].path.open("rb") as file:
        file.seek(pixels.offset)
        numbered = enumerate(_encoded_frames(file, pixels.number_of_frames), start=1)
        number, frame = 0, b""
        for plane in planes:
            while number < (plane.frame_number or 1):
                number, frame = _next(numbered)
            stored = _of_shape(decode_frame(frame, pixels, shape), shape)
            if stored.dtype.itemsize == 2 and stored.flags.writeable:
                to_hu_in_place(stored, plane.rescale, pixels.padding)
                yield stored.view(np.int16)
            else:
                yield to_hu(stored, plane.rescale, pixels.padding)


def _next(numbered: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    try:
        return next(numbered)
    except StopIteration:
        raise IndexError("fewer frames than the header says") from None


def _of_shape(stored: npt.NDArray[np.integer], shape: tuple[int, int]) -> npt.NDArray[np.integer]:
    if stored.shape != shape:
        raise InconsistentSeries(f"{stored.shape} pixels")
    return stored


def _encoded_frames(file: IO[bytes], number_of_frames: int) -> Iterator[bytes]:
    """The frames of an encapsulated value that begins where `file` stands (PS3.5 section A.4)."""
    start = file.tell()
    offset_table, *fragments = _fragments(file)
    if number_of_frames == 1 and offset_table[1] <= 4:
        yield b"".join(_at(file, offset, length) for offset, length in fragments)
    else:
        from pydicom.encaps import generate_frames

        file.seek(start)
        yield from generate_frames(file, number_of_frames=number_of_frames)


def _fragments(file: IO[bytes]) -> list[tuple[int, int]]:
    """Offset and length of each item; raises EOFError where the value has no end."""
    found = []
    while (lead := file.read(8))[:4] == _ITEM:
        length = int.from_bytes(lead[4:], "little")
        found.append((file.tell(), length))
        file.seek(length, os.SEEK_CUR)
    if lead[:4] != _SEQUENCE_END or len(found) < 2:
        raise EOFError("encapsulated pixels without an end")
    return found


def _at(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
