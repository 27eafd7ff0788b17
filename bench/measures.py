"""The measures, one function each. Each gives back a Figure. Called by run.py."""

import asyncio
import os
import struct
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rack import Failed, say, until
from visitors import Crowd, Stream, visit

IMAGE_CACHE = Path("/var/cache/kopek")
SITE, HOST = "bench", "bench.test"
RATE = 100  # visits a second while a server dies
CALM, AFTERMATH = 1.5, 7.0  # seconds of visits before and after a kill


@dataclass
class Figure:
    measure: str
    goal: str
    figure: str
    met: bool | None = None  # None: nothing was promised
    details: list = field(default_factory=list)

    def document(self):
        return asdict(self)


def dev_up(rack):
    if not any(IMAGE_CACHE.glob("php8.2-apache-*.tar.zst")):
        say("the image is built first")
        rack.up()
        rack.down()
    begun = time.monotonic()
    rack.up()
    took = time.monotonic() - begun
    return Figure("dev up, three servers, images cached", "≤ 30 s", f"{took:.1f} s", took <= 30)


def create_site(rack):
    password = rack.folder / "password"
    password.write_text("bench password")
    source = Path(__file__).parent / "site"
    database = ["--db-name", "bench", "--db-user", "bench", "--db-password-file", password]
    rack.run("site", "create", SITE, "--domain", HOST, "--from", source, *database, "--wait")
    password.unlink()
    vip = next(iter(rack.holders()))
    until(lambda: asyncio.run(visit(vip, HOST)).fault is None, f"the first page of {SITE}")


def memory(rack):
    """An idle server's: the fullest of the three, each page of memory counted once."""
    time.sleep(5)  # let what the start stirred up settle
    sums = {}
    for server in (entry["name"] for entry in rack.servers()):
        processes = rack.processes(server)
        frames = {service: resident_frames(pid) for service, pid in processes.items()}
        together = len(set().union(*frames.values())) * os.sysconf("SC_PAGESIZE") / 1e6
        each = {service: round(len(own) * os.sysconf("SC_PAGESIZE") / 1e6) for service, own in frames.items()}
        sums[server] = (together, each)
        say(f"{server}: {together:.0f} MB of {each}")
    server, (most, each) = max(sums.items(), key=lambda entry: entry[1][0])
    parts = ", ".join(f"{service} {size}" for service, size in sorted(each.items()))
    return Figure(
        "memory of Kopek's own processes, idle server", "≤ 120 MB", f"{most:.0f} MB ({parts})", most <= 120
    )


def resident_frames(pid):
    """The page frames that a process has in memory (Linux Documentation/admin-guide/mm/pagemap.rst)."""
    size, frames = os.sysconf("SC_PAGESIZE"), set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(address, 16) // size for address in line.split()[0].split("-"))
            if line.endswith("[vsyscall]"):
                continue
            table = os.pread(pagemap.fileno(), (last - first) * 8, first * 8)
            for (entry,) in struct.iter_unpack("<Q", table):
                if entry >> 63:
                    frames.add(entry & ((1 << 55) - 1))
    if frames == {0}:
        raise Failed("/proc/PID/pagemap hides page frames; run as root")
    return frames


def instance_start(rack, starts):
    """From the moment of the decision (its event) to the moment when its agent had the first byte of PHP's
    answer to the probe (`since` of the phase `serving`)."""
    rack.scale(SITE, 1)
    times = []
    for _ in range(starts):
        begun = time.time()
        rack.scale(SITE, 2)
        newest = max(rack.serving(SITE), key=lambda instance: int(instance["id"].split(".")[-1]))
        decided = next(
            event["at"]
            for event in rack.events(begun)
            if event["subject"] == newest["id"] and " on " in event["what"]
        )
        times.append(newest["since"] - decided)
        rack.scale(SITE, 1)
    middle, late = percentile(times, 50), percentile(times, 99)
    return Figure(
        f"instance: decision → first PHP byte, {starts} starts",
        "p50 ≤ 150 ms, p99 ≤ 500 ms",
        f"p50 {middle} ms, p99 {late} ms",
        middle <= 150 and late <= 500,
        sorted(times),
    )


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share / 100 * len(ordered) + 0.5) - 1)]


def server_killed(rack, instances, kills):
    """Visitors through an address that another server holds, while a server that runs the site is killed."""
    rack.scale(SITE, instances)
    limit = 3 if instances == 1 else 1
    details = []
    for nth in range(kills):
        running = sorted(instance["server"] for instance in rack.serving(SITE))
        victim = running[nth % len(running)]
        vip = next(vip for vip, holder in rack.holders().items() if holder != victim)
        roles = rack.roles(victim, SITE)
        visits, killed = asyncio.run(kill_under_visits(rack, victim, vip))
        faults = {}
        for each in visits:
            if each.fault:
                faults[each.fault] = faults.get(each.fault, 0) + 1
        longest = max(visits, key=lambda each: each.wait)
        rack.recover(victim)
        until(lambda: rack.counts(SITE)[1] >= instances, f"{instances} instances of {SITE}")
        detail = {
            "victim": victim,
            "roles": roles,
            "visits": len(visits),
            "failed": sum(faults.values()),
            "faults": faults,
            "longest_s": round(longest.wait, 3),
            "longest_begun_after_kill_s": round(longest.begun - killed, 3),
            "events": [
                f"{event['at'] / 1000 - killed:+.3f} {event['subject']} {event['what']} ({event['reason']})"
                for event in rack.events(killed)
            ][:12],
        }
        details.append(detail)
        say(
            f"{victim} ({', '.join(roles) or 'plain'}) killed: {detail['failed']} of {len(visits)} failed {faults or ''}"
            f", longest {longest.wait:.2f} s"
        )
        for event in detail["events"]:
            say(f"    {event}")
    failed = sum(detail["failed"] for detail in details)
    worst = max(detail["longest_s"] for detail in details)
    few = "one instance" if instances == 1 else f"{instances} instances"
    return Figure(
        f"server killed, site with {few}, {RATE} visits/s, {kills} kills",
        f"0 failed, longest ≤ {limit} s",
        f"{failed} of {sum(detail['visits'] for detail in details)} failed, longest {worst:.2f} s",
        failed == 0 and worst <= limit,
        details,
    )


async def kill_under_visits(rack, victim, vip):
    stream = Stream(vip, HOST, RATE)
    await asyncio.sleep(CALM)
    killed = time.time()
    await asyncio.to_thread(rack.dev, "kill", victim)
    await asyncio.sleep(AFTERMATH)
    return await stream.end(), killed


def vip_holder_killed(rack, kills):
    """New connections every 10 ms; the gap is from the first that failed to the first answer after the last
    that failed. The site runs on two servers, so one instance always lives. The promise is for pages that ask
    no database: the gap of those that do holds the change of writer as well when the victim was the writer."""
    rack.scale(SITE, 2)
    details = []
    for nth in range(kills):
        holders = sorted(rack.holders().items())
        vip, victim = holders[nth % len(holders)]
        roles = rack.roles(victim, SITE)
        without_query, with_query = (gap(visits) for visits in asyncio.run(connect_while_killed(rack, victim, vip)))
        details.append({"victim": victim, "roles": roles, "gap_s": without_query, "with_query_gap_s": with_query})
        say(
            f"{victim} ({', '.join(roles) or 'plain'}) with {vip} killed: {without_query:.2f} s without answers,"
            f" {with_query:.2f} s to pages with a query"
        )
        rack.recover(victim)
        until(lambda: rack.counts(SITE)[1] >= 2, f"2 instances of {SITE}")
    worst = max(detail["gap_s"] for detail in details)
    worst_with_query = max(detail["with_query_gap_s"] for detail in details)
    return Figure(
        f"VIP holder killed: new connections answered, {kills} kills",
        "≤ 0.5 s",
        f"longest {worst:.2f} s; pages with a query {worst_with_query:.2f} s",
        worst <= 0.5,
        details,
    )


async def connect_while_killed(rack, victim, vip):
    streams = [Stream(vip, HOST, 100, path, patience=1) for path in ("/still.php", "/")]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(rack.dev, "kill", victim)
    await asyncio.sleep(3)
    return [await stream.end() for stream in streams]


def gap(visits):
    failed = [each for each in visits if each.fault]
    if not failed:
        return 0.0
    last = max(each.begun for each in failed)
    answered = min(each.ended for each in visits if not each.fault and each.begun > last)
    return round(answered - failed[0].begun, 3)


def load_rises(rack, rises):
    """From the moment when the load of the only instance passed 2.00 to a second one that serves."""
    times = []
    for _ in range(rises):
        rack.run("site", "scale", SITE, "--min", 1, "--max", 1)
        until(lambda: rack.counts(SITE) == (1, 1), "one instance", rack.states)
        until(lambda: rack.instances(SITE)[0]["load"] < 500, "the load to settle")
        rack.run("site", "scale", SITE, "--min", 1, "--max", 2)
        times.append(asyncio.run(seconds_to_second(rack)))
        say(f"second instance after {times[-1]:.2f} s")
    worst = max(times)
    return Figure(
        f"load rises tenfold: second instance serves, {rises} rises",
        "≤ 5 s after the load passed 2.00",
        f"longest {worst:.1f} s",
        worst <= 5,
        times,
    )


async def seconds_to_second(rack):
    vip = next(iter(rack.holders()))
    crowd = Crowd(vip, HOST, 1, "/?spin=40")
    await asyncio.sleep(3)
    crowds = [crowd, Crowd(vip, HOST, 9, "/?spin=40")]
    passed, deadline = None, time.time() + 60
    try:
        while time.time() < deadline:
            instances = await asyncio.to_thread(rack.instances, SITE)
            if passed is None and any(instance["load"] >= 2000 for instance in instances):
                passed = time.time()
            serving = [instance for instance in instances if instance["phase"] == "serving"]
            if len(serving) > 1:
                newest = max(instance["since"] for instance in serving) / 1000
                return newest - (passed or newest)
            await asyncio.sleep(0.1)
    finally:
        for crowd in crowds:
            await crowd.leave()
    raise Failed("the load rose for 60 s and no second instance came")


def control_moves(rack, kills):
    """The active controller's server is killed: until another answers as the active one."""
    times = []
    for _ in range(kills):
        victim = rack.active()
        begun = time.time()
        rack.dev("kill", victim)
        while rack.active() == victim:
            time.sleep(0.05)
        times.append(time.time() - begun)
        say(f"{victim} killed: control moved in {times[-1]:.2f} s")
        rack.recover(victim)
    worst = max(times)
    return Figure(f"control moves, {kills} kills", "≤ 3 s", f"longest {worst:.2f} s", worst <= 3, times)


def edge(rounds):
    """Ratios of requests per second, taken in one run by edge.sh."""
    script = Path(__file__).parent / "edge.sh"
    environment = {**os.environ, "ROUNDS": str(rounds)}
    done = subprocess.run([script], capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode != 0:
        raise Failed(f"edge.sh: {done.stderr.strip()}")
    rows = [line.split() for line in done.stdout.splitlines()]
    ratios = {row[0]: row[3] for row in rows if len(row) == 4 and row[0] in ("nginx", "haproxy", "origin")}
    figure = f"{ratios['nginx']} × nginx, {ratios['haproxy']} × haproxy, {ratios['origin']} × no proxy"
    return Figure("edge: small responses, requests/s", "–", figure, None, done.stdout.splitlines())
