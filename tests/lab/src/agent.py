"""Runs `ceph` commands for the lab on one connection: a JSON list of words per line in, {"rc", "out", "err"} per line out.
An object instead of a list is a raw command, for the monitor named by its "target" if it has one.

The `ceph` tool takes 0.4 s of processor time to start; tests ask often.
"""

import json
import sys

import rados
from ceph_argparse import ArgumentError, parse_json_funcsigs, validate_command

cluster = rados.Rados(conffile="")
cluster.connect(timeout=int(sys.argv[1]))
print("connected", flush=True)


def descriptions():
    rc, out, err = cluster.mon_command('{"prefix": "get_command_descriptions"}', b"")
    if rc:
        raise rados.Error(err)
    return parse_json_funcsigs(out.decode(), "cli")


known = descriptions()


def run(words):
    global known
    if isinstance(words, dict):
        target = words.pop("target", None)
        words.setdefault("format", "json")
        return cluster.mon_command(json.dumps(words), b"", target=target)
    command = validate_command(known, words)
    if not command:
        # Before the mgr is up, the monitors do not know its commands.
        known = descriptions()
        command = validate_command(known, words)
    if not command:
        return -22, b"", "no such command"
    command["format"] = "json"
    return cluster.mon_command(json.dumps(command), b"")


for line in sys.stdin:
    try:
        rc, out, err = run(json.loads(line))
    except (ArgumentError, rados.Error) as error:
        rc, out, err = -22, b"", str(error)
    print(json.dumps({"rc": rc, "out": out.decode(errors="replace"), "err": err}), flush=True)
