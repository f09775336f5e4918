"""What became of a fault: counted, and compared with what its row of the table says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.faults import Fault

SLACK_S = 6.0
"""What a busy machine may add to a deadline; less than a deadline, so that a second one shows."""


@dataclass(slots=True)
class Outcome:
    """What became of one run of a fault, or of several together."""

    fault: Fault
    struck: int = 0
    loads: int = 0
    became: Counter[str] = field(default_factory=Counter)
    """Files by what became of them: exact, wrong, an errno, SIGBUS, or hung."""
    longest_s: float = 0.0
    status_s: float = 0.0
    recovered: bool = True
    gauges: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    notes: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """What does not agree with the fault's row; nothing if all is as promised."""
        allowed = {"exact"}
        if self.fault.errno:
            allowed |= {self.fault.errno, self.fault.reopened, "SIGBUS"}
        found = [f"{kind}: {n}" for kind, n in self.became.items() if kind not in allowed]
        errors = sum(n for kind, n in self.became.items() if kind not in ("exact", "wrong"))
        if not self.struck:
            found.append("the fault never struck")
        if self.fault.errno and self.fault.seen and not errors:
            found.append(f"nobody saw {self.fault.errno}")
        if not self.became["exact"] and not self.fault.errno:
            found.append("nothing was loaded")
        if self.longest_s > self.fault.bound_s + SLACK_S:
            found.append(f"an access took {self.longest_s:.1f} s")
        if not self.recovered:
            found.append("the mount did not recover")
        if any(self.gauges.values()):
            found.append(f"not all gauges are zero: {self.gauges}")
        return found and [*found, *self.notes]

    def add(self, other: Outcome) -> None:
        """Another run of the same fault."""
        self.struck += other.struck
        self.loads += other.loads
        self.became += other.became
        self.longest_s = max(self.longest_s, other.longest_s)
        self.status_s = max(self.status_s, other.status_s)
        self.recovered &= other.recovered
        self.gauges = {name: max(n, self.gauges.get(name, 0)) for name, n in other.gauges.items()}
        self.requests += other.requests
        self.notes += other.notes
