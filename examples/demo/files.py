"""Numbered files on a mounted disk: written and synced one by one, or checked. What a file must contain follows from its name.

write FOLDER OWNER LOG: goes on until killed, and notes in LOG what became of each file: "ok 17", "error 18 EIO".
check FOLDER OWNER LOG: looks for each file noted as ok, and prints {"synced": 40, "lost": 1, "garbled": 2} and what is wrong.
"""

import ctypes
import errno
import hashlib
import json
import os
import sys
import threading
import time

PAUSE = 0.005
PAUSE_AFTER_ERROR = 0.05
SCRATCH_FILES = 40
SYNC_EACH = 20


def content(name):
    digest = hashlib.sha256(name.encode()).digest()
    return digest * (128 * (1 + digest[0] % 8))


def write(folder, owner, log):
    for made in (owner, "scratch"):
        os.makedirs(f"{folder}/{made}", exist_ok=True)
    threading.Thread(target=churn, args=(f"{folder}/scratch", owner), daemon=True).start()
    number = 0
    while True:
        number += 1
        name = f"{owner}-{number}"
        try:
            with open(f"{folder}/{owner}/{name}", "wb", buffering=0) as file:
                file.write(content(name))
                os.fsync(file.fileno())
            note = f"ok {number}"
        except OSError as error:
            note = f"error {number} {errno.errorcode.get(error.errno, error.errno)}"
            time.sleep(PAUSE_AFTER_ERROR)
        # One write call per line: a killed writer leaves whole lines.
        os.write(log, f"{note}\n".encode())


def churn(folder, owner):
    """Makes and removes files without end, so that the bitmaps of the file system never rest, and has them written back."""
    syncfs, here = ctypes.CDLL(None).syncfs, os.open(folder, os.O_RDONLY)
    number = 0
    while True:
        number += 1
        try:
            with open(f"{folder}/{owner}-{number}", "wb") as file:
                file.write(content(str(number)))
            if number > SCRATCH_FILES:
                os.remove(f"{folder}/{owner}-{number - SCRATCH_FILES}")
            if number % SYNC_EACH == 0:
                syncfs(here)
        except OSError:
            time.sleep(PAUSE_AFTER_ERROR)
        time.sleep(PAUSE)


def check(folder, owner, log):
    synced = [line.split()[1] for line in log if line.startswith("ok ")]
    lost, garbled, seen = 0, 0, []
    for name in (f"{owner}-{number}" for number in synced):
        try:
            with open(f"{folder}/{owner}/{name}", "rb") as file:
                if file.read() == content(name):
                    continue
            garbled += 1
            seen.append(f"{name}: not what was written")
        except FileNotFoundError:
            lost += 1
            seen.append(f"{name}: gone")
        except OSError as error:
            garbled += 1
            seen.append(f"{name}: {os.strerror(error.errno)}")
    print(json.dumps({"synced": len(synced), "lost": lost, "garbled": garbled, "seen": seen[:3]}))


verb, folder, owner, log = sys.argv[1:5]
if verb == "write":
    write(folder, owner, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
else:
    with open(log) as lines:
        check(folder, owner, lines)
