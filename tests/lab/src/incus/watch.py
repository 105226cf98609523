"""Looks at who watches the images of a pool, round after round, and says so when it has changed. Argument: pool.

A line of JSON per change: image, watchers (addresses), and CLOCK_MONOTONIC in ns of the beginning of the look before and the end of
this one: the change came between. Read-only opens leave no watch.
"""

import json
import sys
import time

import rados
import rbd

LIST_EVERY = 0.2


def now():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


cluster = rados.Rados(conffile="")
cluster.connect()
ioctx = cluster.open_ioctx(sys.argv[1])
images = {}
listed = 0
print("watching", flush=True)
while True:
    if time.monotonic() - listed > LIST_EVERY:
        names = {name for name in rbd.RBD().list(ioctx) if name.startswith(("container_", "custom_"))}
        for name in set(images) - names:
            images.pop(name)[0].close()
        for name in names - set(images):
            try:
                images[name] = [rbd.Image(ioctx, name, read_only=True), None, now()]
            except rbd.Error:
                pass
        listed = time.monotonic()
    for name, entry in images.items():
        image, seen, before = entry
        began = now()
        try:
            found = sorted(watcher["addr"] for watcher in image.watchers_list())
        except rbd.Error:
            continue
        if found != seen:
            print(json.dumps({"image": name, "watchers": found, "after": before, "by": now()}), flush=True)
        entry[1:] = [found, began]
    # A look takes milliseconds: without a pause it would take a processor.
    time.sleep(0.005)
