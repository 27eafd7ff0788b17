#!/usr/bin/env python3
"""A wire with a delay between this network namespace and another, where the kernel has no netem: two TUN devices
whose packets this program carries, each after its time. `wire.py NAMESPACE HERE THERE DELAY_US`; says `carrying` on
stdout, ends when its stdin does. Called by sql.py."""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
PR_SET_TIMERSLACK = 29
# What travels at once at most: far more than a handful of connections ever has on its way.
ON_WIRE_MAX = 10_000


def main():
    namespace, here, there, delay_us = sys.argv[1:]
    near, far = device("kbw0"), device("kbw1")
    ip("link", "set", "kbw1", "netns", namespace)
    ip("addr", "add", f"{here}/30", "dev", "kbw0")
    ip("link", "set", "kbw0", "up")
    ip("-n", namespace, "addr", "add", f"{there}/30", "dev", "kbw1")
    ip("-n", namespace, "link", "set", "kbw1", "up")
    # Without this the kernel may wake us 50 µs late.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    print("carrying", flush=True)
    carry(near, far, int(delay_us) / 1e6)


def carry(near, far, delay):
    other = {near: far, far: near}
    travelling = deque()
    while True:
        left = max(travelling[0][0] - time.monotonic(), 0) if travelling else None
        ready, _, _ = select.select([near, far, 0], [], [], left)
        if 0 in ready:
            return
        for end in ready:
            packet = os.read(end, 65536)
            if len(travelling) < ON_WIRE_MAX:
                travelling.append((time.monotonic() + delay, other[end], packet))
        now = time.monotonic()
        while travelling and travelling[0][0] <= now:
            _, end, packet = travelling.popleft()
            os.write(end, packet)


def device(name):
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return end


def ip(*words):
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    main()
