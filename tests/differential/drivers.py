"""Runs the test suites of three MySQL drivers, the C library, PyMySQL and mysql_async, against a MariaDB of their own, direct or with
a proxy before it, and gives each test's outcome. Called by run.py."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

import mtr
from compare import Outcome
from fronts import Fronts, build_hook

HERE = Path(__file__).parent
WORKSPACE = HERE.parent.parent
# The suites' sources, and PyMySQL's copy of them as it came.
SOURCES = Path("/var/cache/kopek/differential/sources")
# mtr's keys serve here too: any will do, the drivers are told not to check them.
KEYS = Path("/usr/share/mysql/mysql-test/std_data")
START_S = 30
# Of the C library's, which take tenths of a second.
ONE_TEST_S = 30
# Both other suites take about 20 seconds. One that hangs is ended.
SUITE_S = 600
# How each suite speaks. PyMySQL has no compression, and its tests of TLS and authentication want a prepared MySQL 8.
MODES = {"client": ["plain"], "pymysql": ["plain"], "mysql_async": ["plain", "compress", "ssl"]}


class Address(NamedTuple):
    socket: str
    port: int


class SuiteMissing(Exception):
    pass


def version(suite):
    return SUITES[suite].version()


def run(suite, mode, folder, tests, proxy):
    """The outcomes by test of one run of `suite` (of `tests` only, if there are any), and what went wrong with
    proxies."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    ready, speak = SUITES[suite].prepare(folder), SUITES[suite].run
    if proxy is None:
        with server(folder, {}) as at:
            return speak(ready, mode, at, tests), []
    with Fronts(proxy, folder, user(), KEYS / "server-cert.pem", KEYS / "server-key.pem") as fronts:
        hooked = {"LD_PRELOAD": str(build_hook(folder)), "KOPEK_FRONTS": str(fronts.address)}
        with server(folder, hooked) as at:
            found = speak(ready, mode, at, tests)
        return found, fronts.deaths


def user():
    return "mysql" if os.geteuid() == 0 else None


@contextlib.contextmanager
def server(folder, environment):
    """A fresh MariaDB with an account root without a password; gives where it is."""
    data, log = folder / "data", folder / "mariadbd.log"
    at = Address(str(folder / "mysqld.sock"), free_port())
    data.mkdir()
    as_user = {"user": user(), "group": user(), "extra_groups": [] if user() else None}
    if user():
        for path in (data, folder):
            shutil.chown(path, user(), user())
    install = ["mariadb-install-db", f"--datadir={data}", "--auth-root-authentication-method=normal", "--no-defaults"]
    with log.open("wb") as output:
        subprocess.run(install, stdout=output, stderr=output, check=True, **as_user)
    command = ["/usr/sbin/mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={at.socket}"]
    command += [f"--port={at.port}", "--bind-address=127.0.0.1", "--character-set-server=utf8mb4", "--local-infile=1", "--max-allowed-packet=36700160"]
    # The plugins of the authentication tests are called experimental.
    command += ["--plugin-maturity=unknown"]
    command += [f"--ssl-cert={KEYS / 'server-cert.pem'}", f"--ssl-key={KEYS / 'server-key.pem'}"]
    with log.open("ab") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment, **as_user)
    try:
        wait_for(at.socket, daemon, log)
        databases = "create database test1; create database test2; create database if not exists test"
        subprocess.run(["mariadb", "--no-defaults", f"--socket={at.socket}", "-uroot", "-e", databases], check=True)
        yield at
    finally:
        daemon.terminate()
        try:
            daemon.wait(START_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(socket_path, daemon, log):
    until = time.monotonic() + START_S
    while time.monotonic() < until and daemon.poll() is None:
        if answers(socket_path):
            return
        time.sleep(0.1)
    raise SuiteMissing(f"mariadbd did not start, see {log}")


def answers(socket_path):
    ping = ["mariadb-admin", "--no-defaults", f"--socket={socket_path}", "-uroot", "ping"]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


# --- The C library ---


def client_version():
    return mtr.package_version().replace(":", "_")


def prepare_client(folder):
    """The names of its tests; they are one program, which mtr runs as one test that ends with the first failure."""
    told = subprocess.run(["mysql_client_test", "--no-defaults", "-T"], capture_output=True, check=True).stdout
    return folder, [line for line in told.decode().splitlines() if line.startswith("test_")]


def run_client(ready, _mode, at, tests):
    folder, names = ready
    # As in mtr, where nobody logs in without a name.
    remove = ["-e", "DELETE FROM mysql.global_priv WHERE User=''; FLUSH PRIVILEGES"]
    subprocess.run(["mariadb", "--no-defaults", f"--socket={at.socket}", "-uroot", *remove], check=True)
    command = ["mysql_client_test", "--no-defaults", "--silent", "--host=localhost", f"--socket={at.socket}", "-uroot"]
    command += [f"--port={at.port}", "--testcase", f"--vardir={folder}"]
    found = {}
    for test in tests or names:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run([*command, test], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  check=False, timeout=ONE_TEST_S, env=os.environ | {"MYSQL_TMP_DIR": str(folder)})
            text = done.stdout.decode(errors="replace")
            found[test] = Outcome("pass" if done.returncode == 0 else "fail", text if done.returncode else "", 0)
            continue
        found[test] = Outcome("fail", "it took too long", 0)
    return found


# --- PyMySQL ---


def pymysql_version():
    pinned = re.search(r"^pymysql==(\S+)", (HERE / "pymysql.txt").read_text(), re.MULTILINE | re.IGNORECASE)
    return pinned[1]


def prepare_pymysql(folder):
    """Unpacks PyMySQL with its tests into `folder`, and gives that tree and where pytest is. Fetched once."""
    kept = SOURCES / f"pymysql-{pymysql_version()}"
    archives, pytest = kept / "archives", kept / "pytest"
    if not pytest.exists():
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # The tests are in the source distribution only, and pip runs nothing of what it does not install.
        fetch = ["download", "--no-deps", "--no-binary", "pymysql", "--require-hashes", "-r", str(HERE / "pymysql.txt")]
        subprocess.run([*pip, *fetch, "--dest", str(archives)], check=True)
        wheels = sorted(archives.glob("*.whl"))
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(pytest), *wheels], check=True)
    [archive] = archives.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    [tree] = [path.parent for path in folder.glob("*/pymysql")]
    return tree, pytest


def run_pymysql(ready, _mode, at, tests):
    tree, pytest = ready
    # By the socket, which PyMySQL's tests of authentication want; mysql_async's go by the port.
    account = {"host": "localhost", "unix_socket": at.socket, "user": "root", "passwd": "", "use_unicode": True}
    databases = [account | {"db": "test1", "local_infile": True}, account | {"db": "test2"}]
    (tree / "pymysql/tests/databases.json").write_text(json.dumps(databases))
    # The source distribution lacks this file, of which the tests count the lines.
    data = tree / "pymysql/tests/data/load_local_data.txt"
    data.parent.mkdir(exist_ok=True)
    data.write_text("".join(f"{line},{line * 7}\n" for line in range(22749)))
    told = tree.parent / "told.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={told}"]
    # A name given back is CLASS::TEST with the module's dots, which pytest finds by its last part.
    command += ["-k", " or ".join(test.split("::")[1] for test in tests)] if tests else []
    with (tree.parent / "suite.log").open("wb") as output:
        subprocess.run([*command, "pymysql/tests"], cwd=tree, stdout=output, stderr=output, timeout=SUITE_S,
                       check=False, env=os.environ | {"PYTHONPATH": f"{tree}:{pytest}", "TZ": "UTC"})
    return junit_outcomes(told)


def junit_outcomes(path):
    found = {}
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        word, text = "pass", ""
        for child in case:
            if child.tag in ("failure", "error"):
                word, text = "fail", child.get("message") or ""
            elif child.tag == "skipped":
                word, text = "skip", child.get("message") or ""
        found[test] = Outcome(word, text, 0)
    return found


# --- mysql_async ---


def mysql_async_version():
    locked = tomllib.loads((WORKSPACE / "Cargo.lock").read_text())
    return next(package["version"] for package in locked["package"] if package["name"] == "mysql_async")


def build_mysql_async(_folder):
    """The crate's tests as a program, of the source that this workspace is built with. Its own Cargo.lock pins the
    rest."""
    command = ["cargo", "metadata", "--format-version=1", "--locked"]
    told = subprocess.run(command, cwd=WORKSPACE, check=True, capture_output=True).stdout
    packages = json.loads(told)["packages"]
    manifest = next(Path(one["manifest_path"]) for one in packages if one["name"] == "mysql_async")
    source = SOURCES / f"mysql_async-{mysql_async_version()}"
    if not source.exists():
        # Copied, because a build in the registry's folder would write there.
        shutil.copytree(manifest.parent, source)
    target = SOURCES / f"mysql_async-{mysql_async_version()}-target"
    command = ["cargo", "test", "--no-run", "--locked", "--lib", "--features", "rustls-tls,ring,tls12"]
    command += ["--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=source, capture_output=True, check=False,
                           env=os.environ | {"CARGO_TARGET_DIR": str(target)})
    if built.returncode != 0:
        raise SuiteMissing(f"the tests of mysql_async do not build:\n{built.stderr.decode(errors='replace')}")
    programs = [one.get("executable") for one in map(json.loads, built.stdout.splitlines())]
    return next(program for program in programs if program)


# Like: test conn::test::should_connect ... ok
ONE_TEST = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)$")
ONE_FAILURE = re.compile(r"^---- (\S+) stdout ----$")


def run_mysql_async(program, mode, at, tests):
    environment = {
        "DATABASE_URL": f"mysql://root@127.0.0.1:{at.port}/mysql",
        "SSL": str(mode == "ssl").lower(),
        "COMPRESS": str(mode == "compress").lower(),
        "RUST_BACKTRACE": "0",
    }
    # One at a time: tests look at the server's counters and change its settings.
    command = [program, "--test-threads=1", *(["--exact", *tests] if tests else [])]
    done = subprocess.run(command, capture_output=True, timeout=SUITE_S, check=False, env=os.environ | environment)
    text = done.stdout.decode(errors="replace")
    words = {"ok": "pass", "FAILED": "fail", "ignored": "skip"}
    found = {}
    failures, current = {}, None
    for line in text.splitlines():
        if match := ONE_TEST.match(line):
            found[match[1]] = words[match[2]]
        elif match := ONE_FAILURE.match(line):
            current = failures.setdefault(match[1], [])
        elif line == "failures:":
            current = None
        elif current is not None:
            current.append(line)
    return {test: Outcome(word, "\n".join(failures.get(test, [])), 0) for test, word in found.items()}


class Suite(NamedTuple):
    version: object
    prepare: object
    run: object


SUITES = {
    "client": Suite(client_version, prepare_client, run_client),
    "pymysql": Suite(pymysql_version, prepare_pymysql, run_pymysql),
    "mysql_async": Suite(mysql_async_version, build_mysql_async, run_mysql_async),
}
