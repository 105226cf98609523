"""A RADOS client that connects, holds its session and does nothing, until asked: an object name per line in, an errno per line out.
At an empty line it closes its image.

Arguments: pool; an image that it is to hold open, if any.
"""

import sys

import rados
import rbd

cluster = rados.Rados(conffile="")
cluster.connect()
ioctx = cluster.open_ioctx(sys.argv[1])
image = rbd.Image(ioctx, sys.argv[2]) if len(sys.argv) > 2 else None
print(cluster.get_addrs(), flush=True)
for line in sys.stdin:
    try:
        if not line.strip():
            image.close()
            print(0, flush=True)
            continue
        ioctx.write_full(line.strip(), b"written by an idle client")
        print(0, flush=True)
    except rados.Error as error:
        print(error.errno or 5, flush=True)
