"""Who has given wrong names, passwords or passcodes, and has to wait for it."""

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from dicom_gateway.origin import origin_of

MOST_WRONG, WITHIN_S = 10, 60.0
_ORIGINS = 10_000


@dataclass(slots=True)
class WrongAttempts:
    """Recent wrong attempts by origin, monotonic seconds; the origin longest without one is forgotten first."""

    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_s(self, address: str, now: float) -> int:
        """Seconds that whoever is behind this address has to wait; 0: none."""
        with self._lock:
            times = self._times.get(origin_of(address), deque())
            while times and times[0] <= now - WITHIN_S:
                times.popleft()
            return math.ceil(times[0] + WITHIN_S - now) if len(times) >= MOST_WRONG else 0

    def add(self, address: str, now: float) -> None:
        """Count one more."""
        origin = origin_of(address)
        with self._lock:
            self._times.setdefault(origin, deque(maxlen=MOST_WRONG)).append(now)
            self._times.move_to_end(origin)
            if len(self._times) > _ORIGINS:
                self._times.popitem(last=False)
