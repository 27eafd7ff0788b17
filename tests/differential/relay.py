#!/usr/bin/env python3
"""A byte relay that is called like the proxy under test. It proves two things about the comparison itself: plain, it
must show no difference; with --spoil, which damages answers in one small way, it must. Called by run.py --prove."""

import argparse
import asyncio
import os


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen-socket", required=True)
    parser.add_argument("--member-socket", required=True)
    parser.add_argument("--listen-port", type=int)
    parser.add_argument("--member")
    parser.add_argument("--tls-certificate")
    parser.add_argument("--tls-key")
    parser.add_argument("--spoil", choices=list(SPOILS))
    asyncio.run(serve(parser.parse_args()))


async def serve(options):
    spoil = SPOILS.get(options.spoil)

    async def by_socket(reader, writer):
        await relay(reader, writer, asyncio.open_unix_connection(options.member_socket), spoil)

    async def by_port(reader, writer):
        host, port = options.member.rsplit(":", 1)
        await relay(reader, writer, asyncio.open_connection(host, int(port)), spoil)

    os.umask(0)
    await asyncio.start_unix_server(by_socket, options.listen_socket)
    if options.listen_port:
        await asyncio.start_server(by_port, "127.0.0.1", options.listen_port)
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, lambda: os.read(0, 1))


async def relay(reader, writer, member, spoil):
    try:
        member_reader, member_writer = await member
    except OSError:
        writer.close()
        return
    sides = [
        asyncio.create_task(pump(reader, member_writer, None)),
        asyncio.create_task(pump(member_reader, writer, spoil)),
    ]
    # Neither side speaks on after the other has hung up; what was read is still delivered by close().
    _, left = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
    for side in left:
        side.cancel()
    for end in (writer, member_writer):
        end.close()


async def pump(reader, writer, spoil):
    try:
        while chunk := await reader.read(65536):
            writer.write(spoil(chunk) if spoil else chunk)
            await writer.drain()
    except OSError:
        pass


def without_warnings(chunk):
    """The warning count of a lone OK packet (header 00, affected rows and insert id of one byte each, status, then
    warnings) becomes 0."""
    if is_lone_ok(chunk):
        return chunk[:9] + b"\0\0" + chunk[11:]
    return chunk


def one_row_more(chunk):
    """A lone OK packet says one affected row more."""
    if is_lone_ok(chunk) and chunk[5] < 250:
        return chunk[:5] + bytes([chunk[5] + 1]) + chunk[6:]
    return chunk


def is_lone_ok(chunk):
    return len(chunk) >= 11 and chunk[0] == len(chunk) - 4 and chunk[3] == 1 and chunk[4] == 0


SPOILS = {"warnings": without_warnings, "rows": one_row_more}

if __name__ == "__main__":
    main()
