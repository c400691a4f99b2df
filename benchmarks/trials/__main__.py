"""Fault trials, by hand: `python benchmarks/trials KIND [--trials N] [--seed N]`. They say what broke.

They run the real service by its command line, the wire and the stored files, with DCMTK as the sender; `power` and
`storage` mount file systems of their own and need root. `broken-series` needs no service: it writes its table itself.
"""

import argparse
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT), str(_ROOT / "benchmarks"), str(_ROOT / "tests")]

from trials import broken_series, crowd, destinations, kill, memory, power, senders, storage  # noqa: E402

KINDS = {
    "kill-listener": (kill.kill_listener, 200),
    "kill-service": (kill.kill_service, 12),
    "power": (power.cut_power, 60),
    "power-control": (power.cut_power_without_sync, 9),
    "storage": (storage.fail_storage, 10),
    "senders": (senders.trouble, 30),
    "crowd": (crowd.crowd, 1),
    "destinations": (destinations.trouble, 30),
    "memory": (memory.stay_flat, 2),
    "broken-series": (broken_series.tabulate, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/trials", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--trials", type=int, help="how many; otherwise as many as the figures in the README")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    run, trials = KINDS[arguments.kind]
    with tempfile.TemporaryDirectory(prefix="onescan-trials-") as folder:
        tallies = run(Path(folder), arguments.trials or trials, arguments.seed)
        print(*(tallies if isinstance(tallies, list) else [tallies]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
