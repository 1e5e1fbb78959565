"""In a virtual machine: runs commands, one JSON line in and one out per connection."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time


def run(asked):
    """Run a command to its end or its time limit; in the background its pid is the answer."""
    env = {"PATH": "/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **asked["env"]}
    with tempfile.TemporaryFile(dir="/run") as out, tempfile.TemporaryFile(dir="/run") as err:
        process = subprocess.Popen(
            asked["words"], stdin=subprocess.PIPE, stdout=out, stderr=err, cwd="/", env=env, start_new_session=True
        )
        process.stdin.write(asked["stdin"].encode())
        process.stdin.close()
        if asked["background"]:
            threading.Thread(target=process.wait, daemon=True).start()
            return {"pid": process.pid}
        try:
            code = process.wait(asked["timeout"])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = 124
        out.seek(0)
        err.seek(0)
        texts = {"out": out.read().decode("utf-8", "replace"), "err": err.read().decode("utf-8", "replace")}
        return {"code": code, **texts}


def answer(connection):
    """One connection."""
    with connection:
        asked = json.loads(connection.makefile("rb").readline())
        if asked["op"] == "run":
            said = run(asked)
        else:
            time.clock_settime(time.CLOCK_REALTIME, asked["now"])
            said = {"ready": os.path.exists("/run/ready")}
        connection.sendall(json.dumps(said).encode() + b"\n")


listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("0.0.0.0", 7077))
listening.listen(64)
while True:
    threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()
