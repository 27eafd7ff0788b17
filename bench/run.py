#!/usr/bin/env python3
"""Speed and size of Kopek on a virtual rack of this machine, as one table and as bench/last.json. Called by
`make bench`. The figures depend on the machine and on what else it does; the first line says which it was."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import measures
from rack import Failed, Rack, say

LAST = Path(__file__).parent / "last.json"


def main():
    options = arguments()
    quick = options.quick
    folder = Path(tempfile.mkdtemp(prefix="kopek-bench-", dir="/var/tmp"))
    rack = Rack(options.kopek.resolve(), folder)
    # In this order: what wants an idle rack first, what kills servers last.
    plan = {
        "edge": lambda: measures.edge(rounds=1 if quick else 3),
        "up": lambda: measures.dev_up(rack),
        "memory": lambda: measures.memory(rack),
        "start": lambda: measures.instance_start(rack, starts=10 if quick else 50),
        "load": lambda: measures.load_rises(rack, rises=1 if quick else 3),
        "one": lambda: measures.server_killed(rack, instances=1, kills=2 if quick else 10),
        "two": lambda: measures.server_killed(rack, instances=2, kills=2 if quick else 10),
        "vip": lambda: measures.vip_holder_killed(rack, kills=2 if quick else 5),
        "control": lambda: measures.control_moves(rack, kills=2 if quick else 5),
    }
    wanted = options.only or list(plan)
    if unknown := set(wanted) - set(plan):
        sys.exit(f"there is no measure {', '.join(unknown)}; there are {', '.join(plan)}")
    figures, standing = [], False
    try:
        for name, measure in plan.items():
            needs_rack = name not in ("edge", "up")
            if name not in wanted and not (name == "up" and set(wanted) - {"edge", "up"}):
                continue
            say(f"{name} …")
            try:
                figures.append(measure())
                if name == "up":
                    measures.create_site(rack)
                    standing = True
            except Failed as failure:
                figures.append(measures.Figure(name, "", f"not measured: {failure}", False))
                say(str(failure))
                if needs_rack and standing and options.keep:
                    break
                if name == "up":
                    break
    finally:
        if not options.keep:
            rack.down()
    show(figures)
    LAST.write_text(json.dumps({"machine": machine(), "figures": [f.document() for f in figures]}, indent=1))
    sys.exit(0 if all(figure.met is not False for figure in figures) else 1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kopek", type=Path, required=True, help="the binary, best a release build")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", nargs="+", metavar="MEASURE", help="edge up memory start load one two vip control")
    parser.add_argument("--keep", action="store_true", help="leave the rack standing, to look into its logs")
    return parser.parse_args()


def machine():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()},"
        f" load of the machine {os.getloadavg()[0]:.1f}"
    )


def show(figures):
    met = {True: "yes", False: "NO", None: ""}
    rows = [("measure", "goal", "figure", "met")]
    rows += [(each.measure, each.goal, each.figure, met[each.met]) for each in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print(machine())
    for nth, row in enumerate(rows):
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if nth == 0:
            print("-+-".join("-" * width for width in widths))


if __name__ == "__main__":
    main()
