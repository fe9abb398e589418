"""What became of every clip of a data set: nothing is left out silently."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidiff import files


@dataclass
class Fates:
    """Counts of clips by what was done with them, and the names of those that were left out."""

    total: int = 0
    as_is: int = 0
    trimmed: int = 0  # longer than a sample: only a window of them is seen
    retimed: Counter[str] = field(default_factory=Counter)  # by "30 fps -> 12 fps"
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    beyond_limit: int = 0

    @property
    def used(self) -> int:
        return self.total - len(self.skipped) - self.beyond_limit

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; used + skipped + beyond_limit = total."""
        return {
            "total": self.total,
            "used": self.used,
            "as_is": self.as_is,
            "trimmed": self.trimmed,
            "retimed": dict(self.retimed),
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "beyond_limit": self.beyond_limit,
        }

    def table(self) -> str:
        """Return a table for people; a clip may be both re-timed and trimmed."""
        rows = [("clips", self.total), ("used", self.used), ("  as they are", self.as_is), ("  trimmed", self.trimmed)]
        rows += [(f"  re-timed {what}", count) for what, count in sorted(self.retimed.items())]
        if self.beyond_limit:
            rows.append(("beyond the limit", self.beyond_limit))
        rows.append(("skipped", len(self.skipped)))
        reasons = Counter(_kind(reason) for _, reason in self.skipped)
        rows += [(f"  {reason}", count) for reason, count in reasons.most_common(10)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>7}" for name, count in rows)


def write_skipped(fates: Fates, path: Path) -> None:
    """Write one JSON object a line for every clip that was left out: its name and the reason."""
    rows = [json.dumps({"name": name, "reason": reason}) for name, reason in fates.skipped]
    files.write_text(path, "".join(row + "\n" for row in rows))


def _kind(reason: str) -> str:
    """Return a reason without the name of the clip it starts with."""
    return reason.split(": ", 1)[-1][:60]
