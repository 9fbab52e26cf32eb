"""A trace of jax.profiler as a table: the operations of the devices by the time that they take."""

import collections
import gzip
import json

ROWS = 25


def table(folder, steps):
    """The longest operations in the trace below `folder`, milliseconds of one step, alike ones together."""
    file = next(folder.rglob("*.trace.json.gz"))
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    named = [event for event in events if event.get("ph") == "M" and event["name"] == "process_name"]
    devices = {event["pid"] for event in named if "/device:" in event["args"]["name"]}
    spent = collections.Counter()
    for event in events:
        arguments = event.get("args", {})
        # On accelerators the lines of a device hold the operations; the host's threads do on CPUs.
        if event.get("ph") == "X" and "hlo_op" in arguments and (event["pid"] in devices or not devices):
            spent[arguments["hlo_op"].rstrip("0123456789.")] += event["dur"]
    whole = sum(spent.values())
    lines = [
        f"| {name} | {time / 1e3 / steps:.2f} | {100 * time / whole:.1f} % |" for name, time in spent.most_common(ROWS)
    ]
    return "\n".join(["| operations | ms of a step | share |", "| --- | --- | --- |", *lines])
