#!/usr/bin/env python3
"""Runs test suites of others direct against MariaDB and through a proxy, and compares what comes out, test by test:
MariaDB's own main suite, the C library's tests one by one, and those of the drivers PyMySQL and mysql_async. What may differ stands in known.txt with
its reason; any other difference is exit code 1. Called by `make test` (short.txt) and `make differential` (all).

The proxy is a command that is run once for each server, with the addresses on which it must listen and where its
server is: see fronts.py. It says "listening" on its standard output and ends when its standard input does.

A difference counts when it shows again twice, each time direct and proxied one after the other: some tests of
the suite are unsteady by themselves."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import drivers
import mtr
from compare import Outcome, known_differences, verdict

HERE = Path(__file__).parent
# Direct outcomes are kept from run to run, for they change only with the package.
CACHE = Path("/var/cache/kopek/differential")
# Servers' data directories: hundreds of them are made and removed.
MEMORY = Path("/dev/shm")
REPEATS = 2
# What --prove runs: quick tests, in which warnings and affected rows are seen.
PROOF = ["main.change_user", "main.get_diagnostics", "main.ps_2myisam", "main.warnings"]
SUITES = ["mtr", "client", "pymysql", "mysql_async"]


def main():
    options = arguments()
    if options.prove:
        sys.exit(0 if prove() else 1)
    known = known_differences((HERE / "known.txt").read_text())
    folder = Path(tempfile.mkdtemp(prefix="kopek-differential-", dir=MEMORY))
    folder.chmod(0o755)
    clean = False
    try:
        results = [
            compared(suite, mode, options, known, folder)
            for suite in options.suites
            for mode in (options.modes if suite == "mtr" else drivers.MODES[suite])
        ]
        clean = all(results)
    finally:
        if clean or not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs and rejected results: {folder}")
    sys.exit(0 if clean else 1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", metavar="COMMAND", help="the proxy under test; without it: direct outcomes only")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--modes", nargs="+", choices=list(mtr.MODES), default=["plain"], help="how mtr speaks")
    parser.add_argument("--manner", help="a name for how the proxy is run, if that is not as usual: see known.txt")
    parser.add_argument("--tests", nargs="+", metavar="TEST", default=[], help="tests of mtr, instead of all")
    parser.add_argument("--list", type=Path, metavar="FILE", help="tests of mtr, one a line")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=int, default=240, help="a run of the suite is cut off after this time")
    parser.add_argument("--fresh", action="store_true", help="run direct again, whatever is kept")
    parser.add_argument("--keep", action="store_true", help="leave logs when something differs")
    parser.add_argument("--prove", action="store_true", help="show that a plain relay passes and a spoiling one fails")
    options = parser.parse_args()
    if options.list:
        options.tests += [line for line in options.list.read_text().split("\n") if line and line[0] != "#"]
    return options


def compared(suite, mode, options, known, folder):
    """Runs one suite in one mode both ways, tells what came out, and whether nothing unknown differs."""
    runs = Runs(suite, mode, options, folder)
    if options.manner:
        mode = f"{mode}+{options.manner}"
    # Names chosen by hand are mtr's; the drivers' suites are short and run whole.
    tests = options.tests if suite == "mtr" else []
    if options.proxy is None:
        direct = runs.direct(tests)
        print(f"{suite} {mode}: direct {counts(direct)}", flush=True)
        return True
    proxied, deaths = runs.proxied(tests)
    direct = runs.direct_of(proxied)
    found = verdict(direct, proxied, known, mode)
    unsteady = []
    for _ in range(REPEATS):
        if not found.new:
            break
        again, more_deaths = runs.proxied(found.new, jobs=1)
        deaths += more_deaths
        fresh = runs.direct(found.new, jobs=1)
        steadied = verdict(fresh, again, known, mode).same
        unsteady += [test for test in found.new if test in steadied]
        for test in steadied:
            direct[test] = proxied[test] = again[test]
        found = verdict(direct, proxied, known, mode)
    tell(suite, mode, direct, proxied, found, unsteady, deaths)
    return not found.new and not deaths and not found.missing


class Runs:
    """The runs of one suite in one mode, and the kept direct outcomes."""

    def __init__(self, suite, mode, options, folder):
        self.suite, self.mode, self.options, self.folder = suite, mode, options, folder
        self.number = 0
        self.kept_in = CACHE / f"{suite}-{version(suite)}-{mode}.json"

    def run(self, tests, jobs, proxy):
        self.number += 1
        way = "proxied" if proxy else "direct"
        folder = self.folder / f"{self.suite}-{self.mode}-{self.number}-{way}"
        began = time.monotonic()
        if self.suite == "mtr":
            found, deaths = mtr.run(folder, self.mode, tests, jobs, self.options.minutes, proxy)
        else:
            found, deaths = drivers.run(self.suite, self.mode, folder, tests, proxy)
        took = time.monotonic() - began
        print(f"{self.suite} {self.mode}: {way} {counts(found)} in {took:.0f} s", file=sys.stderr, flush=True)
        return found, deaths

    def proxied(self, tests, jobs=None):
        return self.run(self.named(tests), jobs or self.options.jobs, self.options.proxy)

    def direct(self, tests, jobs=None):
        """Runs direct and keeps what came out."""
        found, _ = self.run(self.named(tests), jobs or self.options.jobs, None)
        kept = self.kept() | found
        CACHE.mkdir(parents=True, exist_ok=True)
        document = {test: [one.word, one.text, one.milliseconds] for test, one in sorted(kept.items())}
        self.kept_in.write_text(json.dumps(document, indent=1))
        return found

    def named(self, tests):
        """Names as the suite takes them: mtr runs every combination of a test."""
        return sorted({test.split(" ")[0] for test in tests}) if self.suite == "mtr" else tests

    def kept(self):
        if not self.kept_in.exists():
            return {}
        return {test: Outcome(*one) for test, one in json.loads(self.kept_in.read_text()).items()}

    def direct_of(self, proxied):
        """Direct outcomes of the tests that were run through the proxy."""
        kept = {} if self.options.fresh else self.kept()
        absent = sorted(proxied.keys() - kept.keys())
        if absent:
            whole = not kept and (self.suite != "mtr" or not self.options.tests)
            kept = kept | self.direct([] if whole else absent)
        return {test: one for test, one in kept.items() if test in proxied}


def version(suite):
    return mtr.package_version().replace(":", "_") if suite == "mtr" else drivers.version(suite)


def counts(found):
    words = [one.word for one in found.values()]
    return f"{len(words)} tests, {words.count('pass')} pass, {words.count('fail')} fail, {words.count('skip')} skipped"


def tell(suite, mode, direct, proxied, found, unsteady, deaths):
    for test in found.new:
        print(f"\n{suite} {mode}: {test} differs\n  direct: {shown(direct[test])}\n  proxied: {shown(proxied[test])}")
    for test, reason in found.listed:
        print(f"{suite} {mode}: {test} differs, as listed: {reason}")
    for test in found.healed:
        print(f"{suite} {mode}: {test} is listed and came out the same")
    for test in unsteady:
        print(f"{suite} {mode}: {test} differed once and came out the same when both were run again")
    for test in found.missing:
        print(f"{suite} {mode}: {test} came out on one side only")
    for death in deaths:
        print(f"{suite} {mode}: {death}")
    print(
        f"{suite} {mode}: {len(found.same)} the same (of them {sum(direct[t].word == 'pass' for t in found.same)} pass,"
        f" {sum(direct[t].word == 'skip' for t in found.same)} skipped), {len(found.listed)} differ as listed,"
        f" {len(found.new)} differ",
        flush=True,
    )


def shown(outcome):
    lines = outcome.text.splitlines()
    more = f"\n    … {len(lines) - 40} lines more" if len(lines) > 40 else ""
    return outcome.word + "".join(f"\n    {line}" for line in lines[:40]) + more


def prove():
    """The comparison itself: a plain relay shows no difference, each spoiling one shows some."""
    options = argparse.Namespace(tests=PROOF, minutes=30, jobs=2, fresh=False, manner=None)
    good = True
    for spoil, must_be_clean in [(None, True), ("warnings", False), ("rows", False)]:
        options.proxy = f"{HERE}/relay.py" + (f" --spoil {spoil}" if spoil else "")
        with tempfile.TemporaryDirectory(prefix="kopek-differential-", dir=MEMORY) as folder:
            Path(folder).chmod(0o755)
            clean = compared("mtr", "plain", options, [], Path(folder))
        good &= clean is must_be_clean
        print(f"a relay that spoils {spoil or 'nothing'}: {'no difference' if clean else 'noticed'}", flush=True)
    return good


if __name__ == "__main__":
    main()
