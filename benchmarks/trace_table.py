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
    lines = collections.defaultdict(list)
    for event in events:
        # On accelerators the lines of a device hold the operations; the host's threads do on CPUs.
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}) and (event["pid"] in devices or not devices):
            lines[event["pid"], event["tid"]].append(event)
    spent = collections.Counter()
    for line in lines.values():
        for event, time in own_times(line):
            spent[event["args"]["hlo_op"].rstrip("0123456789.")] += time
    whole = sum(spent.values())
    rows = [
        f"| {name} | {time / 1e3 / steps:.2f} | {100 * time / whole:.1f} % |" for name, time in spent.most_common(ROWS)
    ]
    return "\n".join(["| operations | ms of a step | share |", "| --- | --- | --- |", *rows])


def own_times(events):
    """[event, its time without that of the events within it, as a loop's body] of one line."""
    around, found = [], []
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        while around and around[-1][0]["ts"] + around[-1][0]["dur"] <= event["ts"]:
            around.pop()
        if around:
            around[-1][1] -= event["dur"]
        found.append([event, event["dur"]])
        around.append(found[-1])
    return found
