"""What the benchmark does with Ceph's own Python bindings. Each verb prints one line of JSON.

make POOL REAL MADE_UP    images: so many by librbd, and so many headers with their directory entries, which is all that a sweep reads
hold POOL COUNT LOCKS     opens images for writing, so that they are watched, and locks the first of them; stays until stdin ends
list POOL COUNT           opens images read-only one after another and lists their watchers, as librbd's users do
take POOL IMAGE           opens an image for writing and writes one block
stat POOL COUNT           asks for absent objects one after another
"""

import json
import struct
import sys
import time

import rados
import rbd

PAGE = 500
BLOCK = 4096


def text(value):
    return struct.pack("<I", len(value)) + value.encode()


def make(ioctx, real, made_up):
    for number in range(real):
        features = rbd.RBD_FEATURE_LAYERING | (rbd.RBD_FEATURE_EXCLUSIVE_LOCK if number % 2 else 0)
        rbd.RBD().create(ioctx, f"image-{number}", BLOCK * 1024, old_format=False, features=features)
    with rbd.Image(ioctx, "image-0", read_only=True) as image:
        pattern = f"rbd_header.{image.id()}"
    with rados.ReadOpCtx() as op:
        entries, _ = ioctx.get_omap_vals(op, "", "", 100)
        ioctx.operate_read_op(op, pattern)
        keys, values = zip(*entries)
    for start in range(0, made_up, PAGE):
        numbers = range(start, min(start + PAGE, made_up))
        ids = [f"madeup{number:08x}" for number in numbers]
        under_way = []
        for image in ids:
            with rados.WriteOpCtx() as op:
                ioctx.set_omap(op, keys, values)
                under_way.append(ioctx.operate_aio_write_op(op, f"rbd_header.{image}"))
        for completion in under_way:
            completion.wait_for_complete()
        with rados.WriteOpCtx() as op:
            names = [f"container_c{number}" for number in numbers]
            entries = {f"name_{name}": text(image) for name, image in zip(names, ids)}
            entries |= {f"id_{image}": text(name) for name, image in zip(names, ids)}
            ioctx.set_omap(op, tuple(entries), tuple(entries.values()))
            ioctx.operate_write_op(op, "rbd_directory")
    return {"images": real + made_up}


def hold(ioctx, count, locks):
    images = [rbd.Image(ioctx, f"image-{number}") for number in range(count)]
    for number in range(locks):
        images[2 * number + 1].lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    print(json.dumps({"watched": count, "locked": locks}), flush=True)
    sys.stdin.read()


def list_watchers(ioctx, count):
    began, watchers = time.monotonic(), 0
    for number in range(count):
        with rbd.Image(ioctx, f"image-{number}", read_only=True) as image:
            watchers += len(list(image.watchers_list()))
    return {"images": count, "watchers": watchers, "seconds": time.monotonic() - began}


def take(ioctx, name):
    began = time.monotonic()
    with rbd.Image(ioctx, name) as image:
        image.write(b"x" * BLOCK, 0)
        return {"seconds": time.monotonic() - began}


def stat(ioctx, count):
    began = time.monotonic()
    for number in range(count):
        try:
            ioctx.stat(f"absent-{number}")
        except rados.ObjectNotFound:
            pass
    return {"objects": count, "seconds": time.monotonic() - began}


verb, pool, *words = sys.argv[1:]
cluster = rados.Rados(conffile="")
cluster.connect()
verbs = {"make": make, "hold": hold, "list": list_watchers, "take": take, "stat": stat}
numbers = [int(word) if word.isdigit() else word for word in words]
print(json.dumps(verbs[verb](cluster.open_ioctx(pool), *numbers)), flush=True)
