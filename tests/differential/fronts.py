"""Proxies before the servers of a test run: one for each mariadbd that asks through stand_in.c, as long as it lives.
Called by mtr.py and drivers.py."""

import pathlib
import shlex
import signal
import socketserver
import subprocess
import threading

# A proxy that needs longer to listen than this is broken; a loaded machine needs a second at most.
START_S = 20
# How long a proxy may take to end when its server has ended.
STOP_S = 5
HOOK_SOURCE = pathlib.Path(__file__).parent / "stand_in.c"


def build_hook(folder):
    """Compiles stand_in.c into `folder` and gives the library's path."""
    library = folder / "stand_in.so"
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, HOOK_SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return library


class Fronts:
    """Listens on `folder`/fronts for servers, and starts `command` for each, as the user `user`, with the
    addresses to listen on and those of the server. What proxies say is in `folder`/proxy-N.log."""

    def __init__(self, command, folder, user, certificate, key):
        self.command = shlex.split(command)
        self.folder, self.user = folder, user
        self.tls = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
        self.address = folder / "fronts"
        self.started = 0
        self.deaths = []
        self.lock = threading.Lock()

    def __enter__(self):
        fronts = self

        class OneServer(socketserver.StreamRequestHandler):
            def handle(self):
                fronts.attend(self.rfile, self.wfile)

        self.listener = socketserver.ThreadingUnixStreamServer(str(self.address), OneServer)
        self.listener.daemon_threads = True
        self.address.chmod(0o777)
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown()
        self.listener.server_close()

    def attend(self, asked, answer):
        """From a server's first word to its end."""
        socket = asked.readline().decode().strip()
        port, member_port = (int(asked.readline()) for _ in range(2))
        front = pathlib.Path(socket + ".f")
        front.unlink(missing_ok=True)
        addresses = ["--listen-socket", str(front), "--member-socket", socket + ".m"]
        if port:
            addresses += ["--listen-port", str(port), "--member", f"127.0.0.1:{member_port}"]
        with self.lock:
            self.started += 1
            log = self.folder / f"proxy-{self.started}.log"
        with log.open("w") as output:
            proxy = subprocess.Popen(
                self.command + addresses + self.tls,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                user=self.user,
                group=self.user,
                extra_groups=[],
            )
        late = threading.Timer(START_S, proxy.kill)
        late.start()
        listens = proxy.stdout.readline().strip() == b"listening"
        late.cancel()
        try:
            answer.write(b"+" if listens else b"-")
            asked.read()
        except OSError:
            # A server that was killed ends its connection in this way.
            pass
        self.end(proxy, log)

    def end(self, proxy, log):
        ended = proxy.poll()
        if ended is not None:
            self.deaths.append(f"a proxy ended by itself with {ended}, see {log}")
            return
        proxy.send_signal(signal.SIGKILL)
        try:
            proxy.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.deaths.append(f"a proxy could not be killed, see {log}")
