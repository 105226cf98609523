"""Runs a placement scriptlet, which is Python as well, in a cluster made of what stdin says. Prints what became of it."""
import json
import sys
from types import SimpleNamespace

world = json.load(sys.stdin)
looks, target, asked = 0, None, []


class Refused(Exception):
    pass


def fail(text):
    raise Refused(text)


def members(group=None):
    """Those that are available, with what they are told by now."""
    told = [look for look in world["told"] if look["from"] <= looks][-1]["members"]
    leads = lambda name: ["database-leader"] if name == world["leader"] else []
    return [SimpleNamespace(server_name=name, config=keys, roles=leads(name)) for name, keys in told.items()]


def resources(name):
    global looks
    if name == world["lost"]:
        return "Invalid member name"
    looks += 1
    asked.append(name)
    return SimpleNamespace()


def set_target(name):
    global target
    target = name


def count(project=None, location=None):
    return {None: 1, world["lost"]: 1}.get(location, 0)


def instances(project=None, location=None):
    c1 = SimpleNamespace(name="c1", location=world["lost"])
    return [c1] if location in (None, world["lost"]) else []


env = {
    # Names types as Starlark does.
    "type": lambda value: {str: "string"}.get(value.__class__, "another"),
    "fail": fail,
    "log_info": lambda *_: None,
    "set_target": set_target,
    "get_project": lambda name: SimpleNamespace(config={}),
    "get_cluster_members": members,
    "get_cluster_member_resources": resources,
    "get_instances_count": count,
    "get_instances": instances,
}
exec(world["scriptlet"], env)
request = SimpleNamespace(project="default", name="c1", reason=world["reason"], config={}, devices=world["devices"])
try:
    env["instance_placement"](request, members())
    outcome = target or "any"
except Refused as refused:
    outcome = str(refused)
print(json.dumps({"outcome": outcome, "looks": looks, "asked": sorted(set(asked))}))
