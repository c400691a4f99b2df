"""Who has given wrong names, passwords or passcodes, and has to wait for it."""

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from dicom_gateway.origin import origin_of

MOST_WRONG, WITHIN_S = 10, 60.0
# Of all addresses of one origin together: a subnet may be one machine, or a department.
_MOST_WRONG_OF_ORIGIN = 10 * MOST_WRONG
_REMEMBERED = 10_000


@dataclass(slots=True)
class WrongAttempts:
    """Recent wrong attempts by address and origin, monotonic seconds; who is longest without one is forgotten first."""

    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_s(self, address: str, now: float) -> int:
        """Seconds that whoever is behind this address has to wait; 0: none."""
        with self._lock:
            return max(self._wait_s(name, most, now) for name, most in _counted(address).items())

    def _wait_s(self, name: str, most: int, now: float) -> int:
        times = self._times.get(name, deque())
        while times and times[0] <= now - WITHIN_S:
            times.popleft()
        return math.ceil(times[0] + WITHIN_S - now) if len(times) >= most else 0

    def add(self, address: str, now: float) -> None:
        """Count one more."""
        with self._lock:
            for name, most in _counted(address).items():
                self._times.setdefault(name, deque(maxlen=most)).append(now)
                self._times.move_to_end(name)
                if len(self._times) > _REMEMBERED:
                    self._times.popitem(last=False)


def _counted(address: str) -> dict[str, int]:
    """Under which names attempts from an address count, and how many wrong ones each may make."""
    return {origin_of(address): _MOST_WRONG_OF_ORIGIN} | {address: MOST_WRONG}
