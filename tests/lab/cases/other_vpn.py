#!/usr/bin/env python3
# ladder: another VPN takes 100.64/10 and even our own address: nothing of ours goes into it and nothing comes in from it, tailscaled alive or not
import subprocess
import time

from ladder import packets, pinned, reaches
from lab import ADDRESS, MESH, PREFIX, case, check, ctl, equal, generate, plain_connect, sock, wait

OTHER = "100.100.7.7"
HERD_USER = 20001


def ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True)


def up():
    """A device of the laptop's whose other end is a stranger's network, with a route for all of 100.64/10."""
    laptop, vpn = f"{PREFIX}-laptop", f"{PREFIX}-vpn"
    ip("netns", "add", vpn)
    ip("-n", laptop, "link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1", "netns", vpn)
    ip("-n", laptop, "addr", "add", f"{ADDRESS['laptop']}/10", "dev", "vpn0")
    ip("-n", laptop, "link", "set", "vpn0", "up")
    ip("-n", vpn, "addr", "add", f"{OTHER}/10", "dev", "vpn1")
    for name in ("gpu", "desk", "attic", "colleague"):
        ip("-n", vpn, "addr", "add", f"{ADDRESS[name]}/32", "dev", "vpn1")
    ip("-n", vpn, "link", "set", "vpn1", "up")
    ctl("count", "laptop", "vpn", f'oifname "vpn0" meta skuid {HERD_USER}')
    ctl("count", "laptop", "plain", 'oifname "vpn0" meta skuid 0')


def down():
    subprocess.run(["ip", "-n", f"{PREFIX}-laptop", "link", "del", "vpn0"], capture_output=True)
    subprocess.run(["ip", "netns", "del", f"{PREFIX}-vpn"], capture_output=True)


def knock(source):
    """What a program on the other VPN gets from the laptop's mesh port, as `source`."""
    s = sock("vpn")
    s.settimeout(1)
    try:
        s.bind((source, 0))
        s.connect((ADDRESS["laptop"], MESH))
        s.sendall(b"GET /mesh/v1/offers HTTP/1.1\r\nHost: laptop\r\n\r\n")
        return s.recv(4096)
    except OSError:
        return b""
    finally:
        s.close()


def quiet(seconds):
    """Requests go on for a while: none by the other VPN. Returns by whom `tiny` was answered."""
    by, until = set(), time.monotonic() + seconds
    while time.monotonic() < until:
        by.add(generate("laptop", "tiny", n=1, timeout=20).by)
        for source in (OTHER, ADDRESS["gpu"], ADDRESS["desk"]):
            equal(knock(source), b"", f"what {source} of the other VPN gets")
        time.sleep(0.3)
    equal(packets("laptop", "vpn"), 0, "packets of ours into the other VPN")
    return by


def body():
    pinned("laptop", "desk", "gpu")
    try:
        up()
        equal(quiet(6) - {"gpu"}, set(), "answered, with tailscaled alive, by others than gpu")
        ctl("kill", "tailscaled", "laptop")
        lan = reaches("laptop", "tiny", 20, None, "lan")
        equal(quiet(6) - {"gpu"}, set(), "answered, without tailscaled, by others than gpu")
        # The control: a plain connect does go there.
        before = packets("laptop", "plain")
        plain_connect("laptop", "gpu")
        check(packets("laptop", "plain") > before, "a plain connect did not go into the other VPN: this case shows nothing")
    finally:
        down()
    ctl("start", "tailscaled", "laptop")
    back = wait(45, "the tailnet again", lambda: generate("laptop", "tiny", n=1).by == "gpu")
    return f"0 packets of ours into it and no answer out of it; tiny over the LAN {lan:.1f} s after tailscaled's end, over the tailnet {back:.1f} s after its start"


case(body)
