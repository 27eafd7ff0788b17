"""Runs MariaDB's own test suite (Debian's mariadb-test) and gives each test's outcome, direct or with a proxy before
every server that the suite starts. Called by run.py."""

import os
import re
import subprocess
from pathlib import Path

from compare import Outcome
from fronts import Fronts, build_hook

SUITE = Path("/usr/share/mysql/mysql-test")
MODES = {
    "plain": [],
    "ps": ["--ps-protocol"],
    "cursor": ["--cursor-protocol"],
    "compress": ["--compress"],
    "ssl": ["--ssl"],
    "together": ["--ps-protocol", "--cursor-protocol", "--compress", "--ssl"],
}
# The longest test takes a minute here. One that hangs behind a proxy must not cost the suite's own 15.
TEST_MINUTES = 5
# A line like: main.select 'nm'    w1 [ pass ]   1112
RESULT = re.compile(
    r"^(?P<test>[\w-]+\.[\w.-]+(?: '[^']*')?)\s+(?:w\d+ )?\[ (?:retry-|\d+ )?(?P<word>pass|fail|skipped|disabled) \]"
    r"\s*(?P<rest>.*)$"
)


def package_version():
    command = ["dpkg-query", "-W", "-f", "${Version}", "mariadb-test"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(folder, mode, tests, jobs, minutes, proxy):
    """The outcomes by test of one run of `tests` (names, or none for the whole main suite), and what went wrong with
    proxies. `proxy` is a command or None for direct. The suite refuses to run some tests as root, so it is run as
    the user mysql; `folder` is best in memory."""
    user = "mysql" if os.geteuid() == 0 else None
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    work = folder / "var"
    work.mkdir()
    if user:
        for path in (folder, work):
            subprocess.run(["chown", user, path], check=True)
    command = ["perl", "./mariadb-test-run.pl", f"--vardir={work}", f"--parallel={jobs}"]
    command += ["--force", "--max-test-fail=0", "--retry=0", f"--testcase-timeout={TEST_MINUTES}"]
    command += [f"--suite-timeout={minutes}", "--suite=main", *MODES[mode], *tests]
    if proxy is None:
        return outcomes(command, folder, user), []
    keys = SUITE / "std_data"
    with Fronts(proxy, folder, user, keys / "server-cert.pem", keys / "server-key.pem") as fronts:
        hook = build_hook(folder)
        command += [f"--mysqld-env=LD_PRELOAD={hook}", f"--mysqld-env=KOPEK_FRONTS={fronts.address}"]
        found = outcomes(command, folder, user)
        return found, fronts.deaths


def outcomes(command, folder, user):
    log = folder / "mtr.log"
    with log.open("wb") as output:
        # No names of this environment reach the tests: some print what they find.
        clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C", "USER": user or os.environ["USER"]}
        subprocess.run(command, cwd=SUITE, stdout=output, stderr=subprocess.STDOUT, env=clean, user=user,
                       group=user, extra_groups=[] if user else None, check=False)
    found = parse(log.read_text(errors="replace"))
    if not found:
        raise SuiteFailed(f"the suite ran no test, see {log}")
    return found


class SuiteFailed(Exception):
    pass


def parse(text):
    """Outcomes by test from what the suite printed."""
    found, failed = {}, None
    for line in text.splitlines():
        if line.startswith("-----") or line.startswith("The servers were restarted"):
            failed = None
        match = RESULT.match(line)
        if match is None:
            if failed is not None:
                failed.append(line)
            continue
        test, word, rest = match["test"], match["word"], match["rest"]
        failed = None
        if word == "pass":
            found[test] = Outcome("pass", "", int(rest) if rest.isdigit() else 0)
        elif word == "fail":
            failed = [rest]
            found[test] = Outcome("fail", failed, 0)
        else:
            found[test] = Outcome("skip", rest, 0)
    return {test: outcome.settled() for test, outcome in found.items()}
