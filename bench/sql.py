#!/usr/bin/env python3
"""`sql` before one database against HAProxy in TCP mode and against nothing, in one run: `bench/sql.py --alone
PATH` (cargo build --release -p kopek-sql --example alone). The database stands in a network namespace of its own
behind a veth pair, as on another server; both proxies reach it by TCP. Compare the ratios: the rest is the machine's."""

import argparse
import hashlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEMBER, HERE = "10.213.7.2", "10.213.7.1"
# The same member at the end of a wire with a delay, see wire.py.
FAR, NEAR = "10.213.7.6", "10.213.7.5"
# Half of the 0.2 ms that a packet and its answer take between two servers of a rack with a gigabit switch.
DELAY_US = 100
PORT, HAPROXY, HAPROXY_WIDE, SQL, SQL_FAR, SQL_COUNTED = 3397, 3398, 3401, 3399, 3400, 3402
USER, PASSWORD, SCHEMA = "bench", "secret", "bench"
# With warm backends, adapted texts and commit tokens.
AS_IN_A_CELL = ["--user", USER, "--password", PASSWORD, "--schema", SCHEMA, "--texts", "pool", "--tokens", "kept", "--warm", "32"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=5, help="of each round of point selects")
    parser.add_argument("--rounds", type=int, default=3, help="the median one counts")
    options = parser.parse_args()
    for tool in ("mariadbd", "haproxy", "sysbench", "ip"):
        shutil.which(tool) or sys.exit(f"{tool} is missing: apt-get install mariadb-server haproxy sysbench iproute2")
    folder = Path(tempfile.mkdtemp(prefix="kopek-bench-sql-"))
    folder.chmod(0o777)
    stage = Stage(folder, options.alone.resolve())
    try:
        stage.set_up()
        rows = [point_selects(stage, options), instructions(stage), connects(stage), latency(stage), idle(stage)]
    finally:
        stage.take_down()
    for row in rows:
        print("\n".join(f"| {measure} | {goal} | {figure} |" for measure, goal, figure in row))


class Stage:
    def __init__(self, folder, alone):
        self.folder, self.alone, self.started = folder, alone, []
        self.namespace = f"kbs{os.getpid()}"
        self.socket = folder / "sql.sock"

    def set_up(self):
        run(["ip", "netns", "add", self.namespace])
        run(["ip", "link", "add", "kbs0", "type", "veth", "peer", "name", "kbs1", "netns", self.namespace])
        run(["ip", "addr", "add", f"{HERE}/24", "dev", "kbs0"])
        run(["ip", "link", "set", "kbs0", "up"])
        for words in (["addr", "add", f"{MEMBER}/24", "dev", "kbs1"], ["link", "set", "kbs1", "up"], ["link", "set", "lo", "up"]):
            run(["ip", "-n", self.namespace, *words])
        data, root = self.folder / "data", self.folder / "root.sock"
        env = {**os.environ, "TMPDIR": str(self.folder)}
        run(["mariadb-install-db", "--no-defaults", "--user=mysql", "--skip-test-db",
             "--auth-root-authentication-method=normal", f"--datadir={data}"], env=env)
        member = ["mariadbd", "--no-defaults", "--user=mysql", "--skip-name-resolve", f"--bind-address=0.0.0.0", f"--port={PORT}",
                  f"--datadir={data}", f"--socket={root}", f"--pid-file={self.folder}/pid", "--max-connections=2000"]
        self.start(["ip", "netns", "exec", self.namespace, *member], env=env)
        wait(lambda: subprocess.run(["mariadb", "--no-defaults", "-uroot", "-S", root, "-e", "SELECT 1"], capture_output=True).returncode == 0)
        run(["mariadb", "--no-defaults", "-uroot", "-S", root, "-e",
             f"CREATE DATABASE {SCHEMA}; CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON {SCHEMA}.* TO {USER}@'%';"
             "CREATE DATABASE kopek; CREATE TABLE kopek.site_1 (slot BIGINT UNSIGNED PRIMARY KEY, token BIGINT UNSIGNED NOT NULL);"
             f"GRANT SELECT, INSERT, UPDATE ON kopek.site_1 TO {USER}@'%'"])
        self.haproxy = self.start_haproxy(HAPROXY, "  nbthread 1\n")
        self.haproxy_wide = self.start_haproxy(HAPROXY_WIDE, "")
        self.sql = self.start(self.member(SQL), stdin=subprocess.PIPE)
        self.wire = self.start([Path(__file__).parent / "wire.py", self.namespace, NEAR, FAR, DELAY_US], stdin=subprocess.PIPE)
        self.start(self.member(SQL_FAR, FAR), stdin=subprocess.PIPE)
        # By the socket, as an instance has it, to the same member.
        self.door = self.start([self.alone, "--listen-socket", self.socket, "--member-socket", root, *AS_IN_A_CELL], stdin=subprocess.PIPE)
        for port in (HAPROXY, SQL, SQL_FAR):
            wait(lambda: Client(("127.0.0.1", port)))
        wait(self.socket.exists)

    def member(self, port, address=MEMBER):
        return [self.alone, "--listen-port", str(port), "--member", f"{address}:{PORT}", *AS_IN_A_CELL]

    def start_haproxy(self, port, threads):
        config = self.folder / f"haproxy-{port}.cfg"
        config.write_text(f"global\n{threads}  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
                          f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  server m {MEMBER}:{PORT}\n")
        return self.start(["haproxy", "-db", "-f", config])

    def start(self, command, **how):
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
        self.started.append(process)
        return process

    def take_down(self):
        for process in reversed(self.started):
            process.terminate()
            process.wait(30)
        run(["ip", "link", "del", "kbs0"], check=False)
        run(["ip", "netns", "del", self.namespace], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def point_selects(stage, options):
    account = [f"--mysql-user={USER}", f"--mysql-password={PASSWORD}", f"--mysql-db={SCHEMA}"]
    def sysbench(door, *words):
        at = [f"--mysql-socket={door}"] if isinstance(door, Path) else ["--mysql-host=127.0.0.1", f"--mysql-port={door}"]
        common = ["--db-driver=mysql", *at, *account, "--tables=1", "--table-size=10000", "--db-ps-mode=disable"]
        return run(["sysbench", "oltp_point_select", *common, *words])
    sysbench(HAPROXY, "prepare")
    fronts = {"haproxy": (HAPROXY, stage.haproxy), "haproxy, a thread per core": (HAPROXY_WIDE, stage.haproxy_wide),
              "sql": (SQL, stage.sql), "sql, by sockets": (stage.socket, stage.door)}
    speeds, costs = ({name: [] for name in fronts} for _ in range(2))
    for _ in range(options.rounds):
        for name, (door, process) in fronts.items():
            before = cpu_seconds(process.pid)
            out = sysbench(door, "--threads=16", f"--time={options.seconds}", "run")
            queries = int(re.search(r"queries:\s+(\d+)", out)[1])
            speeds[name].append(queries / options.seconds)
            costs[name].append((cpu_seconds(process.pid) - before) / queries * 1e6)
    speed, cost = ({name: statistics.median(values) for name, values in each.items()} for each in (speeds, costs))
    def rows(ours, theirs, goals=("", "")):
        return [(f"point selects, 16 connections: {ours} against {theirs} (TCP)", goals[0],
                 f"{speed[ours] / speed[theirs]:.2f}× ({speed[ours]:.0f}/s, {speed[theirs]:.0f}/s)"),
                ("its processor time a query", goals[1], f"{cost[ours] / cost[theirs]:.2f}× ({cost[ours]:.1f} µs, {cost[theirs]:.1f} µs)")]
    # `alone` has one thread. In a cell clients come by the socket, and a third of the sites has its writer at home.
    return [*rows("sql", "haproxy", ("≥ 1.0×", "≤ 0.8×")), *rows("sql", "haproxy, a thread per core"), *rows("sql, by sockets", "haproxy")]


def instructions(stage, count=2000):
    """Of the program itself, without the kernel's: the same on every machine, unlike a time."""
    if not shutil.which("valgrind"):
        return [("instructions a query", "", "not measured: valgrind is missing")]
    out = stage.folder / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", *stage.member(SQL_COUNTED)]
    counted = stage.start(command, stdin=subprocess.PIPE)
    wait(lambda: Client(("127.0.0.1", SQL_COUNTED)))
    clients = [Client(("127.0.0.1", SQL_COUNTED)) for _ in range(4)]
    def ask(times):
        for number in range(times):
            clients[number % 4].query(f"SELECT c FROM sbtest1 WHERE id={number + 1}")
    ask(100)
    run(["callgrind_control", "-i", "on", str(counted.pid)])
    ask(count)
    run(["callgrind_control", "-i", "off", str(counted.pid)])
    run(["callgrind_control", "-d", str(counted.pid)])
    first = Path(f"{out}.1")
    total = lambda: first.exists() and re.search(r"^totals: (\d+)", first.read_text(), re.M)
    wait(total)
    return [("instructions a query", "", f"{int(total()[1]) / count:.0f}")]


def connects(stage, count=1000):
    def rate(address):
        for _ in range(50):
            Client(address).query("SELECT 1").quit()
        began = time.perf_counter()
        for _ in range(count):
            Client(address).query("SELECT 1").quit()
        return count / (time.perf_counter() - began)
    def row(wire, goal, ours, direct):
        rounds = [(rate(ours), rate(direct)) for _ in range(3)]
        ours, direct = (statistics.median(each) for each in zip(*rounds))
        return (f"connect, log in, one query, quit, against direct TCP to another server {wire}", goal,
                f"{ours / direct:.2f}× ({ours:.0f}/s, {direct:.0f}/s)")
    return [row(f"{2 * DELAY_US / 1000} ms away", "≥ 1.5×", ("127.0.0.1", SQL_FAR), (FAR, PORT)),
            row("with no wire between", "", ("127.0.0.1", SQL), (MEMBER, PORT))]


def latency(stage, count=20000):
    def times(address):
        client = Client(address)
        taken = []
        for _ in range(count):
            began = time.perf_counter_ns()
            client.query("SELECT 1")
            taken.append((time.perf_counter_ns() - began) / 1e3)
        return sorted(taken)
    ours, direct = times(str(stage.socket)), times(str(stage.folder / "root.sock"))
    at = lambda share: ours[int(count * share)] - direct[int(count * share)]
    return [("added latency over a Unix socket", "p50 ≤ 30 µs, p99 ≤ 150 µs", f"{at(0.5):.0f} µs, {at(0.99):.0f} µs")]


def idle(stage, count=450):
    warm = [Client(str(stage.socket)) for _ in range(20)]
    before = memory(stage.door.pid)
    clients = [Client(str(stage.socket)) for _ in range(count)]
    time.sleep(1)
    each = (memory(stage.door.pid) - before) / count / 1024
    del clients, warm
    return [("idle client connection", "≤ 16 KiB", f"{each:.1f} KiB")]


class Client:
    """Just enough of the protocol to log in by mysql_native_password and to ask."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.connect(address)
        if not isinstance(address, str):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = self.packet()
        end = greeting.index(0, 1)
        nonce = greeting[end + 5:end + 13] + greeting[end + 32:end + 44]
        sha = lambda *parts: hashlib.sha1(b"".join(parts)).digest()
        once = sha(PASSWORD.encode())
        proof = bytes(a ^ b for a, b in zip(once, sha(nonce, sha(once))))
        caps = 1 << 2 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 17 | 1 << 19
        body = caps.to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") + bytes([45]) + bytes(23) + USER.encode() + b"\0"
        self.send(1, body + bytes([20]) + proof + SCHEMA.encode() + b"\0mysql_native_password\0")
        if (answer := self.packet())[0] != 0:
            raise OSError(answer)

    def send(self, sequence, body):
        self.socket.sendall(len(body).to_bytes(3, "little") + bytes([sequence]) + body)

    def packet(self):
        head = self.read(4)
        return self.read(int.from_bytes(head[:3], "little"))

    def read(self, count):
        data = b""
        while len(data) < count:
            if not (more := self.socket.recv(count - len(data))):
                raise OSError("the server closed the connection")
            data += more
        return data

    def query(self, text):
        """For one small row: its answer comes in one piece and ends with EOF."""
        self.send(0, b"\x03" + text.encode())
        data = b""
        while data.count(b"\xfe\x00\x00") < 2:
            data += self.socket.recv(4096)
        return self

    def quit(self):
        self.send(0, b"\x01")
        self.socket.close()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    return int(re.search(r"Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())[1]) * 1024


def run(command, check=True, **how):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **how)
    if check and done.returncode:
        sys.exit(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def wait(holds, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit("a program of the benchmark did not start")


if __name__ == "__main__":
    main()
