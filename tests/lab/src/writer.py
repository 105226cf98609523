"""Writes numbered 4 KiB blocks to an image as fast as librbd takes them, and logs each acknowledgement and each error.

Arguments: pool (or pool/namespace), image, writer id, queue depth, log file.
Block n goes to slot n modulo the image's slots. It carries a magic word, the writer's id, n and a CRC-32 of all the rest.
Log: packed records of kind (0 acknowledged, else errno), block number, CLOCK_MONOTONIC in ns.
"""

import os
import struct
import sys
import threading
import time
import zlib

import rados
import rbd

BLOCK = 4096
RECORD = struct.Struct("<IQQ")
HEAD = struct.Struct("<8sIQ")
PAUSE_AFTER_ERROR = 0.02

pool, image_name, writer, depth, log_path = sys.argv[1:6]
writer, depth = int(writer), int(depth)
pool, _, namespace = pool.partition("/")

cluster = rados.Rados(conffile="")
cluster.connect()
ioctx = cluster.open_ioctx(pool)
ioctx.set_namespace(namespace)
image = rbd.Image(ioctx, image_name)
slots = image.size() // BLOCK
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
free = threading.Semaphore(depth)
refused = threading.Event()


def record(kind, number):
    # One write call per record: a killed writer leaves whole records.
    os.write(log, RECORD.pack(kind, number, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))


def block(number):
    body = HEAD.pack(b"lab-blok", writer, number).ljust(BLOCK - 4, b".")
    return body + struct.pack("<I", zlib.crc32(body))


def write(number):
    def done(completion):
        result = completion.get_return_value()
        record(0 if result >= 0 else -result, number)
        if result < 0:
            refused.set()
        free.release()

    image.aio_write(block(number), number % slots * BLOCK, done)


number = 0
print(cluster.get_addrs(), flush=True)
while True:
    free.acquire()
    if refused.is_set():
        # Refused at once, each time: without a pause this would be a busy loop.
        refused.clear()
        time.sleep(PAUSE_AFTER_ERROR)
    number += 1
    try:
        write(number)
    except rbd.OSError as error:
        record(error.errno or 5, number)
        refused.set()
        free.release()
