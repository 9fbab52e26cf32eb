"""Reading a compiled program: the compiler's cycles, and what is sent between chips."""

import math
import re
from collections.abc import Iterator

ITEM = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2,
        "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")


class Program:
    """The computations of an HLO text, loops counted as often as they run.

    Args:
        text: of `compiled.as_text()`.
        kernel_cycles: for each pair of tokens of our own kernels, twice; the compiler does not estimate them.
    """

    def __init__(self, text: str, kernel_cycles: float = 0.0):
        self.bodies: dict[str, list[str]] = {}
        self.entry, self.kernel_cycles, current = "", kernel_cycles, ""
        partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
        self.devices = int(partitions[1]) if partitions else 1
        for line in text.splitlines():
            head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
            if head:
                current = head[2]
                self.bodies[current] = []
                self.entry = current if head[1] else self.entry
            elif current and not line.startswith("}"):
                self.bodies[current].append(line)

    def cycles(self, branch: int = -1) -> float:
        """The compiler's estimate of one run; NaN where it gives none.

        Args:
            branch: of conditionals, those of the lengths of texts; by default the last, of the longest.
        """
        return self._cycles(self.entry, branch) or math.nan

    def _cycles(self, name: str, branch: int) -> float:
        count = 0.0
        for line, inner, times in self._lines(name, branch):
            own = re.search(r'"?estimated_cycles"?:"?(\d+)', line)
            if inner:
                count += times * self._cycles(inner, branch)
            elif own:
                count += int(own[1])
            elif "tpu_custom_call" in line:
                count += self._kernel(line)
        return count

    def _lines(self, name: str, branch: int) -> Iterator[tuple[str, str, int]]:
        """(line, the computation that it runs or "", how often)."""
        for line in self.bodies.get(name, []):
            loop = re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            choice = re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line)
            called = re.search(r" (?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.\-]+)", line)
            if loop:
                yield line, loop[2], self._rounds(line, loop[1])
            elif choice:
                names = [name.strip(" %") for name in choice[1].split(",")]
                yield line, names[max(-len(names), min(branch, len(names) - 1))], 1
            elif called:
                yield line, called[1], 1
            else:
                yield line, "", 1

    def _rounds(self, line: str, condition: str) -> int:
        """Of a loop: what the compiler knows, else the constant of its condition, to which ours count from 0.

        Raises:
            ValueError: neither is there.
        """
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
        ends = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(self.bodies.get(condition, [])))
        if not known and not ends:
            raise ValueError(f"unknown rounds of {line.strip()[:300]}")
        return int(known[1]) if known else max(map(int, ends))

    def _group(self, line: str) -> int:
        """How many chips take part in a collective: {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}; {} is all.

        Raises:
            ValueError: another form.
        """
        if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
            return listed[1].count(",") + 1
        if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
            return int(iota[1])
        if named := re.search(r"replica_groups=@?\w*\[([^\]]*)\] ?\{([^}]*)\}", line):
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
        if "replica_groups={}" in line or "source_target_pairs" in line:
            return self.devices
        raise ValueError(f"unknown replica groups in {line.strip()[:300]}")

    def _kernel(self, line: str) -> float:
        indices, maxima = (re.findall(dtype + r"\[([\d,]+)\]", line)[:2] for dtype in ("u8", "f32"))
        (patches, *_, images), (rows, _) = ([int(n) for n in shape.split(",")] for shape in indices or maxima)
        return 2 * patches * rows * images * self.kernel_cycles

    def collectives(self) -> dict[str, tuple[int, float]]:
        """{kind: (how often a step, bytes that each chip receives in a step)}."""
        found: dict[str, tuple[int, float]] = {}
        self._collect(self.entry, 1, found)
        return found

    def _collect(self, name: str, times: int, found: dict[str, tuple[int, float]]) -> None:
        for line, inner, often in self._lines(name, -1):
            if inner:
                self._collect(inner, times * often, found)
            elif fused := re.search(r"%?([\w.\-]+) = .* fusion\(.*calls=%?([\w.\-]+)", line):
                # libtpu's: the start of one, what runs beside it and its end each hold the same collective.
                if not (
                    fused[1].startswith("async-collective-start") or fused[2].startswith("async_collective_fusion")
                ):
                    self._collect(fused[2], times, found)
            match = re.search(rf"= (\(?.*?\)?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
            if match:
                kind, group = match[2], self._group(line)
                size = _received(kind, _results(kind, match[1], bool(match[3])), group)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # libtpu's: each keeps a piece
                    kind, size = "reduce-scatter", size / 2
                count, total = found.get(kind, (0, 0.0))
                found[kind] = count + times, total + times * size


def _received(kind: str, results: str, group: int) -> float:
    """Bytes that a chip receives of these results: of a ring, which sends each piece once to each other chip."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", results)
    whole = sum(
        ITEM[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in arrays
        if sizes or dtype not in ("u32", "s32")  # a start's own words
    )
    share = (group - 1) / max(group, 1)
    if kind == "all-reduce":
        return 2 * whole * share
    if kind == "reduce-scatter":  # its result is a piece
        return whole * (group - 1)
    return whole * (1.0 if kind == "collective-permute" else share)


def _results(kind: str, shape: str, start: bool) -> str:
    """The results in the shape of a collective, several where arrays go together; a start has operands before them."""
    plain = re.sub(r"\{[^}]*\}", "", shape)
    if not start or kind == "all-reduce":
        return plain
    if plain.startswith("(("):
        return plain[plain.index(")") + 1 :]
    arrays = re.findall(r"\w+\[[\d,]*\]", plain)
    return arrays[1] if len(arrays) > 1 else plain
