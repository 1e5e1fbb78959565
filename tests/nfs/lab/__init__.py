"""
Real kernel NFS on one machine: a server and nodes, each a small virtual machine (qemu), in a network of their own.

No disk image is built: each machine's root is this machine's `/`, read-only over virtio-9p with a tmpfs
on top, so that Python, its packages and the checkout are there under the same paths (this machine's /tmp
at /host/tmp). In a node `/spool` is the NFS mount and `/persist` a local disk that survives a power loss.
Needs root and what `setup.sh` installs; not KVM, nor NFS in this machine's kernel. Emulated, a node runs
Python about 20 times slower than this machine, so nothing here may depend on how long something takes.
"""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("SPOOLQ_NFSLAB_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "spoolq-nfslab"
)
KERNEL = f"{CACHE}/kernel"
PROGRAMS = "qemu-system-x86_64 busybox modprobe mkfs.ext4 ip exportfs rpc.nfsd mount.nfs rpcbind"
NET, CONTROL = "10.77.0", "10.78.0"  # NFS; our commands
BOOT_S = 300  # beside much other load; a machine that hangs at boot is rare
FREE_MB = 2000  # disks of the machines, of which little is written
SLOW_S = 30  # a start of Python that takes longer (2 s are usual): patience would end before what is waited for
_libc = ctypes.CDLL(None, use_errno=True)


class Unfit(Exception):
    """The machines themselves do not work here: it says nothing about spoolq."""


def missing() -> str:
    """What keeps the lab from running here, or an empty text."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS.split() if not shutil.which(name, path=search)]
    if os.getuid() != 0:
        return "needs root, for a network namespace"
    if os.uname().machine != "x86_64":
        return f"is made for x86_64, this is {os.uname().machine}"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    for path in (HERE, KERNEL, os.path.realpath(sys.executable)):
        if path.startswith(("/dev/", "/run/", "/proc/", "/sys/")):
            return f"needs {path} elsewhere: a machine has a directory of its own there"
    if (free_mb := shutil.disk_usage("/var/tmp").free >> 20) < FREE_MB:
        return f"needs {FREE_MB} MB in /var/tmp, where {free_mb} are free"
    if absent or not os.path.exists(f"{KERNEL}/release"):
        what = f"programs {' '.join(absent)}" if absent else f"a kernel in {CACHE}"
        return f"needs {what}: on Debian or Ubuntu, as root: sh {os.path.relpath(HERE)}/setup.sh"
    return ""


def seen_inside(path: str) -> str:
    """Where a path of this machine is in a node."""
    return f"/host{path}" if path.startswith("/tmp/") else path


def sh(*words: str, check: bool = True) -> str:
    """Run a command of this machine."""
    env = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


class Lab:
    """
    Args:
        vers: of NFS: 4.2, 4.1, 4.0 or 3.
        nodes: how many, n1, n2, ...
        lease_s: of NFSv4, and the grace period of locks; 90 is what servers come with.
    """

    def __init__(self, vers: str, nodes: int = 3, lease_s: int = 90) -> None:
        self.vers, self.lease_s = vers, lease_s
        self.names = ["server", *(f"n{i}" for i in range(1, nodes + 1))]
        self.base = tempfile.mkdtemp(prefix="spoolq-nfslab-", dir="/var/tmp")
        self.netns = os.path.basename(self.base)
        self.machines: dict[str, subprocess.Popen[bytes]] = {}
        self.talking: dict[str, set[socket.socket]] = {name: set() for name in self.names}
        with open(f"{KERNEL}/release", encoding="ascii") as file:
            self.release = file.read().strip()
        try:
            self._initramfs()
            self._network()
            with ThreadPoolExecutor(len(self.names)) as pool:
                list(pool.map(self.boot, self.names))
            self._measure()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Switch everything off; nothing is left."""
        for name in list(self.machines):
            self.kill(name)
        sh("ip", "netns", "del", self.netns, check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    # --- machines

    def kill(self, name: str) -> None:
        """Power loss."""
        machine = self.machines.pop(name)
        machine.kill()
        machine.wait()
        for sock in list(self.talking[name]):  # nobody there is left to end them
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def boot(self, name: str) -> None:
        """Power on; back when /spool is mounted, or exported. A machine that does not come up is tried again."""
        for _ in range(3):
            self._start(name)
            end = time.monotonic() + BOOT_S
            while time.monotonic() < end and self.machines[name].poll() is None:
                with contextlib.suppress(OSError, ValueError):
                    if self._ask(name, {"op": "clock", "now": time.time()}, 5)["ready"]:
                        return
                time.sleep(0.2)
            self.kill(name)
        with open(f"{self.base}/{name}.console", errors="replace") as file:
            raise Unfit(f"{name} does not boot: {file.read()[-1000:]}")

    def died(self) -> list[str]:
        """Machines that are gone though nobody switched them off."""
        return [name for name, machine in self.machines.items() if machine.poll() is not None]

    def _measure(self) -> None:
        began = time.monotonic()
        self.run("n1", seen_inside(sys.executable), "-I", "-S", "-c", "pass", timeout=600)
        if (took := time.monotonic() - began) > SLOW_S:
            raise Unfit(f"too slow: Python takes {took:.0f} s to start in a machine")

    def reboot(self, name: str) -> None:
        """What ran is told to end, then killed, as a machine does that shuts down in good order; then power on."""
        for number in (15, 9):
            self.end_all(name, number)
            time.sleep(2)
        with contextlib.suppress(OSError, ValueError):
            self.run(name, "sh", "-c", "sync; umount -f /spool; sync; echo o > /proc/sysrq-trigger", timeout=10)
        self.kill(name)
        self.boot(name)

    def end_all(self, name: str, number: int = 9) -> None:
        """Signal every process of spoolq and of its jobs."""
        found = "grep -lsaz ^SPOOLQ_ /proc/[0-9]*/environ | cut -d/ -f3"
        self.run(name, "sh", "-c", f"for p in $({found}); do kill -{number} $p; done; true", timeout=60)

    # --- faults

    def partition(self, name: str) -> None:
        """Drop all NFS packets of a machine, silently; what the lab itself says still gets there."""
        sh("ip", "-n", self.netns, "link", "set", f"d{name}", "down")

    def heal(self, name: str) -> None:
        """The end of a partition."""
        sh("ip", "-n", self.netns, "link", "set", f"d{name}", "up")

    def loss(self, name: str, percent: int) -> None:
        """Lose so many of the NFS packets that a machine sends, at random; 0 ends it."""
        self.run(name, "sh", "-c", "tc qdisc del dev eth0 root 2>/dev/null; true")
        if percent:
            done = self.run(name, *f"tc qdisc add dev eth0 root netem loss {percent}%".split())
            assert done["code"] == 0, done

    def server_restart(self, down_s: float) -> None:
        """Stop and start nfsd: replies, locks and NFSv4 state that it remembered are gone."""
        words = f"rpc.nfsd 0; exportfs -au; exportfs -f; sleep {down_s}; exportfs -ra; rpc.nfsd 8"
        done = self.run("server", "sh", "-c", words)
        assert done["code"] == 0, done

    def server_crash(self, down_s: float) -> None:
        """Power loss of the server, which keeps its disk."""
        self.kill("server")
        time.sleep(down_s)
        self.boot("server")

    def fill(self) -> None:
        """Leave no block free on the export."""
        free = "$(df --output=avail -k /spool | tail -n 1)"
        # each of these ends with ENOSPC, and what is written back late or freed meanwhile makes room again
        words = f"fallocate -l $(({free} - 64))K /spool/.fill; for i in 1 2 3 4 5 6 7 8 9; do "
        words += f"cat /dev/zero >> /spool/.fill2; sync; sleep 1; [ {free} = 0 ] && exit 0; done; df -k /spool; exit 1"
        done = self.run("server", "sh", "-c", words)
        assert done["code"] == 0, done

    def unfill(self) -> None:
        """The end of that."""
        self.run("server", "sh", "-c", "rm -f /spool/.fill /spool/.fill2; sync")

    def squash(self, *, on: bool) -> None:
        """Whether root of the nodes is nobody on the server."""
        words = "s/,no_root_squash/,root_squash/" if on else "s/,root_squash/,no_root_squash/"
        done = self.run("server", "sh", "-c", f"sed -i {words} /etc/exports && exportfs -ra")
        assert done["code"] == 0, done

    def clock(self, name: str, ahead_s: float = 0) -> None:
        """Set a machine's clock to this machine's, or so far ahead of it."""
        self._ask(name, {"op": "clock", "now": time.time() + ahead_s}, 10)

    def run(self, name: str, *words: str, stdin: str = "", timeout: float = 300, background: bool = False, **env: str):
        """Run a command in a machine: {code, out, err}, or {pid} in the background."""
        asked = {"op": "run", "words": words, "stdin": stdin, "timeout": timeout, "background": background, "env": env}
        return self._ask(name, asked, timeout + 30)

    # --- inside

    def _initramfs(self) -> None:
        top = f"{self.base}/initramfs"
        for name in ("bin", "proc", "sys", "dev", "ro", "rw", "new", "m"):
            os.makedirs(f"{top}/{name}")
        shutil.copy(shutil.which("busybox") or "/bin/busybox", f"{top}/bin/busybox")
        shutil.copy(f"{HERE}/initramfs.sh", f"{top}/init")
        os.chmod(f"{top}/init", 0o755)
        wanted: list[str] = []
        for module in ("virtio_pci", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay"):
            for line in sh("modprobe", "-d", KERNEL, "-S", self.release, "--show-depends", module).splitlines():
                kind, _, file = line.strip().partition(" ")
                if kind == "insmod" and file.strip() not in wanted:
                    wanted.append(file.strip())
        for number, file in enumerate(wanted):
            name, kind = os.path.splitext(os.path.basename(file))
            open_it = {".zst": "zstd -dqc", ".xz": "xz -dc"}.get(kind, "cat")  # busybox insmod takes them plain only
            sh("sh", "-c", f"{open_it} {file} > {top}/m/{number:02}-{name.removesuffix('.ko')}.ko")
        pack = f"cd {top} && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > {self.base}/initrd.gz"
        sh("sh", "-c", pack)

    def _network(self) -> None:
        sh("ip", "netns", "add", self.netns)
        ip = ("ip", "-n", self.netns)
        sh(*ip, "link", "set", "lo", "up")
        for bridge, net in (("data", NET), ("control", CONTROL)):
            sh(*ip, "link", "add", "name", bridge, "type", "bridge")
            sh(*ip, "addr", "add", f"{net}.1/24", "dev", bridge)
            sh(*ip, "link", "set", bridge, "up")
        for name in self.names:
            for kind, bridge in (("d", "data"), ("c", "control")):
                sh(*ip, "tuntap", "add", f"{kind}{name}", "mode", "tap")
                sh(*ip, "link", "set", f"{kind}{name}", "master", bridge)
                sh(*ip, "link", "set", f"{kind}{name}", "up")

    def _start(self, name: str) -> None:
        number = self.names.index(name)
        last = 2 if number == 0 else 10 + number
        facts = {"dir": HERE, "seen": seen_inside(HERE), "kernel": seen_inside(KERNEL), "name": name, "vers": self.vers}
        facts |= {"py": seen_inside(os.path.realpath(sys.executable)), "net": NET}
        facts |= {"lease": str(self.lease_s), "ip": f"{NET}.{last}", "cip": f"{CONTROL}.{last}"}
        line = "console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check net.ifnames=0 clocksource=hpet "
        line += " ".join(f"lab.{key}={value}" for key, value in facts.items())
        words = ["ip", "netns", "exec", self.netns, "qemu-system-x86_64", "-nodefaults", "-no-user-config"]
        words += ["-display", "none", "-no-reboot", "-m", "256", "-smp", "1", "-M", "q35", "-cpu", "qemu64"]
        words += ["-accel", "tcg,thread=single,tb-size=64", "-serial", f"file:{self.base}/{name}.console"]
        words += ["-kernel", f"{KERNEL}/boot/vmlinuz-{self.release}", "-initrd", f"{self.base}/initrd.gz"]
        words += ["-append", line, "-device", "virtio-9p-pci,fsdev=r,mount_tag=root"]
        words += ["-fsdev", "local,id=r,path=/,security_model=none,readonly=on,multidevs=remap"]
        for slot, (kind, tag) in enumerate((("d", "0d"), ("c", "0c"))):
            words += ["-netdev", f"tap,id={kind},ifname={kind}{name},script=no,downscript=no"]
            mac = f"52:54:00:77:{tag}:{number:02x}"
            words += ["-device", f"virtio-net-pci,netdev={kind},mac={mac},romfile=,addr=0x{4 + slot}"]
        for disk, size in [("persist", "256M"), *([("export", "1G")] if number == 0 else [])]:
            path = f"{self.base}/{name}.{disk}"
            if not os.path.exists(path):
                sh("truncate", "-s", size, path)
                sh("mkfs.ext4", "-q", "-F", "-m", "0", path)
            words += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe"]
        with open(f"{self.base}/{name}.qemu", "ab") as log:
            self.machines[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _ask(self, name: str, asked: dict, timeout: float) -> dict:
        number = self.names.index(name)
        with self._socket() as sock:
            self.talking[name].add(sock)
            try:
                sock.settimeout(5)
                sock.connect((f"{CONTROL}.{2 if number == 0 else 10 + number}", 7077))
                sock.settimeout(timeout)
                sock.sendall(json.dumps(asked).encode() + b"\n")
                with sock.makefile("rb") as file:
                    if answer := file.readline():
                        return json.loads(answer)
            finally:
                self.talking[name].discard(sock)
        raise ConnectionResetError(f"{name} went away")

    def _socket(self) -> socket.socket:
        """A socket in the lab's network; only this thread goes there, for a moment."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.netns}", os.O_RDONLY)
        try:
            assert _libc.setns(there, 0x40000000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWNET
            try:
                return socket.socket()
            finally:
                _libc.setns(home, 0x40000000)
        finally:
            os.close(there)
            os.close(home)
