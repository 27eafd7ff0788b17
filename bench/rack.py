"""A virtual rack of one's own, driven by the command line as a person would. Called by measures.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 120


class Failed(Exception):
    """A command failed, or something did not come to pass in time."""


class Rack:
    def __init__(self, kopek, folder):
        self.kopek = str(kopek)
        self.folder = Path(folder)

    # Commands

    def run(self, *words, limit=LIMIT):
        """Runs `kopek WORDS` against this rack's cell; gives back its output."""
        command = [self.kopek, *map(str, words)]
        if words[0] != "dev":
            command[1:1] = ["--cell", str(self.folder / "admin")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"kopek {' '.join(map(str, words))}: not done after {limit} s") from late
        if done.returncode != 0:
            raise Failed(f"kopek {' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def ask(self, *words):
        return json.loads(self.run(*words, "--json"))

    def dev(self, verb, *words):
        """`kopek dev VERB WORDS`, before any `--`."""
        place = ["--dir", self.folder]
        split = words.index("--") if "--" in words else len(words)
        return self.run("dev", verb, *words[:split], *place, *words[split:])

    def up(self):
        self.run("dev", "up", "--listen", "127.0.0.1:0", "--dir", self.folder, limit=900)

    def down(self):
        self.dev("down")

    # What is

    def servers(self):
        return self.ask("server", "ls")

    def instances(self, site):
        return self.ask("instance", "ls", "--site", site)

    def serving(self, site):
        return [instance for instance in self.instances(site) if instance["phase"] == "serving"]

    def holders(self):
        """VIP → the server that has it."""
        return {vip["address"]: vip["holder"] for vip in self.ask("vip", "ls")}

    def active(self):
        return self.ask("cell", "show")["active"]

    def events(self, since):
        """Events from `since` (seconds of the epoch) on, oldest first."""
        lines = self.run("events", "--json").splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["at"] >= since * 1000]

    def roles(self, server, site):
        """What besides instances the server has: says whose death a measurement was."""
        roles = []
        if self.active() == server:
            roles.append("active controller")
        if "etcd_server_is_leader 1" in self.dev(
            "exec", server, "--", "curl", "-s", "http://127.0.0.1:2381/metrics"
        ):
            roles.append("store leader")
        if self.ask("site", "show", site)["writer"] == server:
            roles.append("writer")
        return roles

    def processes(self, server):
        """Kopek's own processes on a server: service → process id."""
        status = json.loads(self.dev("status", "--json"))
        init = next(entry["pid"] for entry in status["servers"] if entry["name"] == server)
        space = os.readlink(f"/proc/{init}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[1:2] == [b"run"] and os.readlink(entry / "ns/pid") == space:
                    found[words[2].decode()] = int(entry.name)
            except (OSError, IndexError):
                continue  # not a process, or gone meanwhile
        return found

    # Bringing about

    def scale(self, site, number):
        self.run("site", "scale", site, "--min", number, "--max", number)
        until(lambda: self.counts(site) == (number, number), f"{number} instances of {site}", self.states)

    def counts(self, site):
        instances = self.instances(site)
        return len(instances), len([i for i in instances if i["phase"] == "serving"])

    def recover(self, server):
        """Powers a killed server on and waits until the cell is whole again."""
        self.dev("power-on", server)
        until(self.is_whole, f"{server} to be back", self.states)

    def is_whole(self):
        return all(
            server["state"] == "up" and server["pool"] == "synced" for server in self.servers()
        ) and len(set(self.holders().values()) - {None}) == len(self.holders())

    def states(self):
        return ", ".join(f"{s['name']} {s['state']} pool {s['pool']}" for s in self.servers())


def until(holds, what, otherwise=lambda: "", limit=LIMIT, every=0.2):
    """Waits for a condition; a command that fails meanwhile (control moves) counts as not yet."""
    deadline = time.monotonic() + limit
    while True:
        try:
            if holds():
                return
            why = otherwise()
        except Failed as failure:
            why = str(failure)
        if time.monotonic() > deadline:
            raise Failed(f"waited {limit} s for {what}; {why}")
        time.sleep(every)


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)
