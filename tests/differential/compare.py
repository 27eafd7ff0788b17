"""Decides whether a test came out the same through the proxy as direct. Pure; called by run.py, tested by
test_compare.py."""

import re
from dataclasses import dataclass

# What differs from run to run in a failure's text and says nothing about the server's answers.
NOISE = [
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d?:\d\d:\d\d(\.\d+)?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "TIME"),
    (re.compile(r"/\S*/kopek-differential-[^/]+/[^/]+/(var/)?(\d+/)?"), "FOLDER/"),
    (re.compile(r"0x[0-9a-f]{6,}"), "ADDRESS"),
    (re.compile(r"IDENTIFIED BY '\w+'"), "IDENTIFIED BY 'RANDOM'"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"^thread '(\S+)' \(\d+\)", re.MULTILINE), r"thread '\1'"),
    (re.compile(r"\bsafe_process\[\d+\]|\bpid[: ]+\d+"), "PROCESS"),
]
# The lines of the suite's report that say what came out: the difference to the recorded result, and mysqltest's word.
TELLING = re.compile(r"^([+-](?![+-]{2} )|mysqltest: |mariadb-test: |line$|.*\btimeout after|Found warnings|\^ )")


@dataclass(frozen=True)
class Outcome:
    """A test's `word` (pass, fail, skip), for the latter two what says why, and the milliseconds of a pass."""

    word: str
    text: object
    milliseconds: int

    def settled(self):
        text = "\n".join(self.text) if isinstance(self.text, list) else self.text
        return Outcome(self.word, text, self.milliseconds)

    def essence(self):
        """What must be equal, direct and through the proxy."""
        text = self.text
        for pattern, name in NOISE:
            text = pattern.sub(name, text)
        if self.word == "fail":
            told = [line for line in text.splitlines() if TELLING.match(line)]
            # A crash or a failed start has none of these lines: then all of it is compared.
            text = "\n".join(told) or text
        return (self.word, text)


@dataclass(frozen=True)
class Known:
    """One line of the list: in these modes this test differs, for this reason."""

    test: str
    modes: frozenset
    reason: str

    def covers(self, test, mode):
        """`mode` may be two, as plain+pool: the suite's, and the proxy's."""
        return self.test in (test, test.split(" ")[0]) and not self.modes.isdisjoint(["*", *mode.split("+")])


class BadList(Exception):
    pass


def known_differences(text):
    """The list from the text of known.txt: `TEST MODES REASON` a line, MODES separated by commas or `*`."""
    known = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(r"^(\S+(?: '[^']*')?)\s+([\w,*]+)\s+(\S+ .+)$", line)
        if match is None:
            raise BadList(f"line {number} is not `TEST MODES REASON`: {line}")
        known.append(Known(match[1], frozenset(match[2].split(",")), match[3]))
    return known


@dataclass(frozen=True)
class Verdict:
    same: list
    listed: list  # (test, reason)
    new: list
    healed: list  # in the list and not different any more
    missing: list  # with an outcome on one side only


def verdict(direct, proxied, known, mode):
    """Sorts the tests of two maps from test to Outcome."""
    both = sorted(direct.keys() & proxied.keys())
    reasons = {test: next((k.reason for k in known if k.covers(test, mode)), None) for test in both}
    differs = {test for test in both if direct[test].essence() != proxied[test].essence()}
    return Verdict(
        same=[test for test in both if test not in differs],
        listed=[(test, reasons[test]) for test in both if test in differs and reasons[test]],
        new=[test for test in both if test in differs and not reasons[test]],
        healed=[test for test in both if test not in differs and reasons[test]],
        missing=sorted(direct.keys() ^ proxied.keys()),
    )
