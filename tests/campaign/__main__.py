"""Try faults at random until a time is over, and count what did not hold.

    python tests/campaign --minutes 20 --seed 7             every family, the same time each
    python tests/campaign --only kills,disks --minutes 60   two of them
    python tests/campaign --write docs/reliability          and the counts as DIRECTORY/FAMILY.json

Prints a line for each fault, and a table at the end. Exit status 1 if there was a fault.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from random import Random
from unittest import mock

HERE = Path(__file__).resolve().parent
if sys.path[0] == str(HERE):
    del sys.path[0]  # where `secrets` is a family, and not Python's own module
for place in (HERE.parent.parent / "scripts", HERE.parent):
    sys.path.insert(0, str(place))

from campaign import FAMILIES, Case  # noqa: E402


def run(
    family: str, seed: int, seconds: float, work: Path, tell: Callable[[str], None] = print
) -> tuple[Counter[str], list[Case]]:
    """(trials of each kind, the cases with a fault) of one family in so many seconds.

    A trial under way when the time is over is finished. work: an empty directory.
    """
    module = importlib.import_module(f"campaign.{family}")
    until, tried, faults = time.monotonic() + seconds, Counter(), []
    cases_of = module.cases(Random(seed), work)
    with mock.patch.dict(os.environ), closing(cases_of) as cases:  # some families set variables
        for number, case in enumerate(cases):
            tried[case.kind] += 1
            if case.fault:
                faults.append(case)
                tell(f"{family} {number}, seed {seed}: {case.kind}: {case.fault}")
            if time.monotonic() > until:
                break
    return tried, faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="time of all families together")
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance")
    parser.add_argument("--only", default=",".join(FAMILIES), help="families, with commas")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="of the counts")
    args = parser.parse_args()
    families = args.only.split(",")
    if unknown := sorted(set(families) - set(FAMILIES)):
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    failed = 0
    for family in families:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"campaign-{family}-") as work:
            share = 60 * args.minutes / len(families)
            tried, faults = run(family, args.seed, share, Path(work))
        lost = Counter(case.kind for case in faults)
        minutes = (time.monotonic() - began) / 60
        print(f"{family}: {tried.total()} trials, {len(faults)} faults, {minutes:.0f} minutes")
        for kind, times in sorted(tried.items()):
            print(f"  {times:6}  {lost[kind]:4}  {kind}", flush=True)
        if args.write:
            said = {
                "date": date.today().isoformat(),
                "seed": args.seed,
                "minutes": round(minutes, 1),
                "tried": dict(sorted(tried.items())),
                "faults": [f"{case.kind}: {case.fault}" for case in faults],
            }
            args.write.mkdir(parents=True, exist_ok=True)
            (args.write / f"{family}.json").write_text(json.dumps(said, indent=1) + "\n")
        failed += len(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
