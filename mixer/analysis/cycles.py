"""Reads what XLA's TPU compiler expects each op of a program to cost.

The text of a compiled program has `estimated_cycles` for the ops that it
schedules: the compiler's own model, which knows layouts, copies and tiles.
Their sum predicts measured speed better than `optimal_seconds` does, which
knows neither layouts nor products that are computed twice. An op inside a
fusion has no estimate of its own, and collectives have none at all.
"""
import collections
from collections.abc import Iterable
import dataclasses
import re

# A device's clock in Hz, and its multiply-add operations (two FLOPs each) in a
# cycle. A device is a core of v2 and v3, and a chip of later generations. The
# clocks of v5e and v5p follow from their published peaks; that of v6e is not
# known. The estimates for v4 use one of a chip's two cores of 1,050 MHz: a
# bfloat16 product of 8,192^3 reaches 0.45 of the chip's peak by them, and 0.88
# to 0.97 on other generations. So a v4 chip counts as one core of twice the
# clock.
CLOCK = {'v2': 700e6, 'v3': 940e6, 'v4': 2100e6, 'v5e': 1.5e9, 'v5p': 1.75e9}
_PEAK = {'v2': 2**14, 'v3': 2**15, 'v4': 2**16, 'v5e': 2**16, 'v5p': 2**17}
# How much longer a measured training step takes than its cycles say:
# big_vision's B/16 takes 84.6 ms for 32 images a core (300 epochs in 2h11m,
# configs/mlp_mixer_i1k.py), and the cycles of our float32 step said 65.3 (as
# of 2026-11-30). `mixer.study table --topology=v3:2x2` has both.
CORRECTION = {'v3': 1.3}

_HEAD = re.compile(r'^(ENTRY )?%([\w.-]+) \(.*\{$')
_OP = re.compile(r'^\s+(?:ROOT )?%([\w.-]+) = .*?[})\]] ([\w-]+)\(')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LAYER = re.compile(r'op_name="([^"]*)"')
_BODY = re.compile(r'body=%([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Left out if they have no estimate: ops of single numbers, ops that take no
# time, and ops inside which others are counted.
_SCALAR = re.compile(r' = \w+\[\]')
_FREE = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant',
         'while', 'copy-done', 'partition-id', 'after-all'}


@dataclasses.dataclass(frozen=True)
class Op:
  """A scheduled op of a compiled program.

  Attributes:
    name: in the program, such as 'fusion.12'.
    kind: such as 'fusion', 'copy' or 'all-reduce'.
    layer: what it was traced from, such as 'MixerBlock_0/channel_mixing'.
    cycles: of all its executions, by the compiler's estimate; None without one.
  """
  name: str
  kind: str
  layer: str
  cycles: int | None


def ops(text: str) -> list[Op]:
  """Returns the scheduled ops of a program.

  The body of a loop counts as often as the loop runs; the ops of a loop whose
  length is unknown count once.

  Args:
    text: of the program, from `compiled.as_text()`.
  """
  found: dict[str, list[str]] = {}
  entry = name = ''
  for line in text.splitlines():
    if head := _HEAD.match(line):
      name = head[2]
      found[name] = []
      entry = name if head[1] else entry
    elif name:
      found[name].append(line)
  return list(_scheduled(found, entry, 1))


def total(program: Iterable[Op]) -> int:
  """Returns the cycles of all ops that have an estimate."""
  return sum(op.cycles or 0 for op in program)


def dearest(program: Iterable[Op], count: int = 10) -> list[tuple[str, int]]:
  """Returns (layer, cycles) of the most expensive layers.

  The blocks of a network are alike, so their ops are added up.

  Args:
    program: as `ops` returns it.
    count: how many layers, at most.
  """
  by_layer: dict[str, int] = collections.Counter()
  for op in program:
    by_layer[op.layer] += op.cycles or 0
  return sorted(by_layer.items(), key=lambda row: -row[1])[:count]


def without_estimate(program: Iterable[Op]) -> dict[str, int]:
  """Returns {kind: number} of the ops that the sum leaves out."""
  return dict(collections.Counter(
      op.kind for op in program if op.cycles is None))


def seconds(cycles: float, generation: str) -> float | None:
  """Returns the time of so many cycles; None if the clock is not known.

  Args:
    cycles: of one device.
    generation: such as 'v3'.
  """
  return cycles / CLOCK[generation] if generation in CLOCK else None


def utilisation(flops: float, cycles: float, generation: str) -> float | None:
  """Returns the share of the matrix units' peak; None if that is not known.

  Args:
    flops: floating-point operations of one device, two for a multiply-add.
    cycles: of the same program.
    generation: such as 'v3'.
  """
  peak = _PEAK.get(generation)
  return flops / (2 * peak * cycles) if peak and cycles else None


def _scheduled(found: dict[str, list[str]], name: str,
               times: int) -> Iterable[Op]:
  for line in found.get(name, ()):
    op = _OP.match(line)
    if op is None:
      continue
    if op[2] == 'while' and (body := _BODY.search(line)):
      trips = _TRIPS.search(line)
      yield from _scheduled(found, body[1], times * int(
          trips[1] if trips else 1))
    cycles = _CYCLES.search(line)
    if cycles is None and (op[2] in _FREE or _SCALAR.search(line)):
      continue
    layer = _LAYER.search(line)
    yield Op(op[1], op[2], _layer(layer[1] if layer else ''),
             times * int(cycles[1]) if cycles else None)


def _layer(traced: str) -> str:
  """Returns the layer of jit(step)/transpose(jvp(Net))/Block_0/layer/dot.

  Numbers of blocks are left out, and the gradients' ops are marked.
  """
  parts = [re.sub(r'_\d+$', '', part) for part in traced.split('/')[1:]]
  mark = ' (gradient)' if 'transpose(' in traced else ''
  return '/'.join(p for p in parts if '(' not in p) + mark or 'other'
