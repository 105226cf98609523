"""A RADOS client that connects, holds its session and does nothing, until asked: an object name per line in, an errno per line out."""

import sys

import rados

cluster = rados.Rados(conffile="")
cluster.connect()
ioctx = cluster.open_ioctx(sys.argv[1])
print(cluster.get_addrs(), flush=True)
for line in sys.stdin:
    try:
        ioctx.write_full(line.strip(), b"written by an idle client")
        print(0, flush=True)
    except rados.Error as error:
        print(error.errno or 5, flush=True)
