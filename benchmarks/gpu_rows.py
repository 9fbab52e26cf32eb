"""Rows of gpu.py's table, and how its parts measure: {part, what, form, ms, rate, unit, share, GiB} as lines of JSON."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

REPEAT = 5
HBM = {"h100": 3350e9, "h200": 4800e9}  # bytes a second, of their makers
PEAK = {"h100": 989e12, "h200": 989e12}  # bfloat16 operations a second
COMPILERS = 4  # programs that are compiled at once


def row(part, what, form, **numbers):
    print(json.dumps({"part": part, "what": what, "form": form} | numbers), flush=True)


def chip_share(rates, value):
    """The share of what the device's maker promises; nothing for devices that are not in the table."""
    import jax

    kind = jax.devices()[0].device_kind.lower()
    rate = next((rate for name, rate in rates.items() if name in kind), None)
    return {"share": f"{100 * value / rate:.1f} %"} if rate else {}


def median(action, repeat=REPEAT):
    """The median seconds of some calls after two."""
    spent = []
    for _ in range(2 + repeat):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return sorted(spent[2:])[repeat // 2]


def compiled_of(makers):
    """Compile several programs at once; return {name: what its maker returns}, and print why one cannot be."""
    with ThreadPoolExecutor(COMPILERS) as pool:
        futures = {name: pool.submit(make) for name, make in makers.items()}
    made = {}
    for name, future in futures.items():
        try:
            made[name] = future.result()
        except Exception as error:
            part, what, form = name
            row(part, f"{what}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", form)
    return made
