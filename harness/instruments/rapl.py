"""Energy of a machine's processor packages by RAPL (Linux' powercap tree; Intel and AMD processors).

A counter belongs to a package, so it holds what every program on the machine has used. It starts anew at
``max_energy_range_uj`` (about 262 kJ: 20 minutes at 200 W), which is taken into account as long as it is read more
often than that. Often only root may read it (CVE-2020-8694).

zeus 0.16 (https://ml.energy/zeus) was tried and is not used: it measures RAPL and NVIDIA's counters too, but takes
devices by their numbers in CUDA_VISIBLE_DEVICES, not by the job's ranks, refuses MIG, starts a process a package and
rank that polls the counter on the cores that are timed, and brings pandas, scikit-learn, httpx and amdsmi with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/class/powercap")


@dataclass
class _Package:
    counter: Path
    wraps_at: int | None
    last: int
    used: int = 0


class Rapl:
    """Joules that the packages have used since it was made. root: of the powercap tree."""

    def __init__(self, root: Path = ROOT) -> None:
        self._packages: list[_Package] = []
        self.missing = "it has no RAPL counter"
        self._lost = False
        for zone in sorted(root.glob("intel-rapl:*")) if root.is_dir() else ():
            # Zones below a package have two colons; "psys" holds the packages once more.
            if zone.name.count(":") != 1 or not _text(zone / "name").startswith("package"):
                continue
            counter, most = zone / "energy_uj", _text(zone / "max_energy_range_uj")
            if not os.access(counter, os.R_OK) or not (now := _text(counter)).isdigit():
                self.missing = "its RAPL counters may be read by root only"
                self._lost = True
                continue
            wraps = int(most) if most.isdigit() and int(most) > 0 else None
            self._packages.append(_Package(counter=counter, wraps_at=wraps, last=int(now)))

    def joules(self) -> float | None:
        """Since it was made, over all packages; None where one cannot be read."""
        if self._lost or not self._packages:
            return None
        for package in self._packages:
            text = _text(package.counter)
            if not text.isdigit():
                self._lost, self.missing = True, "a RAPL counter could not be read any more"
                return None
            step = int(text) - package.last
            if step < 0:
                if package.wraps_at is None:
                    self._lost, self.missing = True, "a RAPL counter began anew, and its range is not known"
                    return None
                step += package.wraps_at
            package.last = int(text)
            package.used += step
        return sum(package.used for package in self._packages) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
