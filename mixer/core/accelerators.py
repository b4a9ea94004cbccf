"""Peak speed and memory of accelerators, by name.

A device is what JAX calls a device: one of the two cores of a chip for TPU v2,
v3, 7x and 8i, a whole chip or card otherwise. Peaks are of dense matrix
products, without sparsity. The sources are beside the rows.
"""
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import re

# Share of the peak that training usually reaches; a run measures its own.
USUAL_UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device of an accelerator.

  Attributes:
    name: the name that `--accelerator` takes.
    kind: a regular expression for JAX's `device_kind`.
    flops_per_second: peak rate of matrix products in `precision`.
    memory_bytes: memory of the device.
    devices_per_chip: 2 where JAX counts the two cores of a chip, else 1.
    precision: the dtype with the highest peak that training can use: bfloat16,
      or float32 where bfloat16 is no faster.
  """
  name: str
  kind: str
  flops_per_second: float
  memory_bytes: int
  devices_per_chip: int = 1
  precision: str = 'bfloat16'


def _table(rows: Iterable[tuple]) -> dict[str, Accelerator]:
  return {name: Accelerator(name, kind, flops * 1e12 / per_chip,
                            gib * 2**30 // per_chip, per_chip, *precision)
          for name, kind, flops, gib, per_chip, *precision in rows}


# Name, JAX's device kind, TFLOP/s and GiB of a chip or card, devices per chip,
# and the precision where it is not bfloat16.
ACCELERATORS = _table((
    # https://docs.cloud.google.com/tpu/docs has a page for each but 8i, whose
    # numbers are from JAX 0.10.2 (jax/_src/pallas/mosaic/tpu_info.py).
    ('v2', 'TPU v2', 45, 16, 2),
    ('v3', 'TPU v3', 123, 32, 2),
    ('v4', 'TPU v4', 275, 32, 1),
    ('v5e', 'TPU v5 lite|TPU v5e', 197, 16, 1),
    ('v5p', 'TPU v5p?', 459, 95, 1),
    ('v6e', 'TPU v6 lite|TPU v6e', 918, 32, 1),
    ('7x', 'TPU7x', 2307, 192, 2),
    ('8i', 'TPU8i', 1101, 288, 2),
    # NVIDIA's data sheets (https://www.nvidia.com/en-us/data-center/NAME). For
    # GB200 and B300 they give a whole rack or board; the rows divide it by the
    # number of GPUs. Volta and Turing multiply fast in float16 only, not in
    # bfloat16.
    ('V100', 'Tesla V100.*16GB', 15.7, 16, 1, 'float32'),
    ('V100-32GB', 'Tesla V100.*32GB', 15.7, 32, 1, 'float32'),
    ('T4', '(Tesla|NVIDIA) T4', 8.1, 16, 1, 'float32'),
    ('A10', 'NVIDIA A10', 125, 24, 1),
    ('A100-40GB', 'NVIDIA A100.*40GB', 312, 40, 1),
    ('A100-80GB', 'NVIDIA A100.*80GB.*', 312, 80, 1),
    ('L4', 'NVIDIA L4', 121, 24, 1),
    ('L40S', 'NVIDIA L40S', 362, 48, 1),
    ('H100', 'NVIDIA H100 80GB HBM3', 989, 80, 1),
    ('H100-PCIe', 'NVIDIA H100 PCIe', 756, 80, 1),
    ('H100-NVL', 'NVIDIA H100 NVL', 835, 94, 1),
    ('GH200', 'NVIDIA GH200 480GB', 989, 96, 1),
    ('GH200-144GB', 'NVIDIA GH200 144G HBM3e', 989, 144, 1),
    ('H200', 'NVIDIA H200', 989, 141, 1),
    ('B200', 'NVIDIA B200', 2250, 180, 1),
    ('GB200', 'NVIDIA GB200', 2500, 186, 1),
    ('B300', 'NVIDIA B300.*', 2250, 268, 1),
    # https://www.amd.com/en/products/accelerators/instinct has a data sheet for
    # each.
    ('MI300X', 'AMD Instinct MI300X', 1307, 192, 1),
    ('MI355X', 'AMD Instinct MI355X', 2516, 288, 1),
))


def of_kind(kind: str) -> Accelerator | None:
  """Returns the accelerator with JAX's `device_kind`, or None if unknown."""
  # The whole name must match: an 'NVIDIA L40S' is not an 'NVIDIA L4'.
  return next((a for a in ACCELERATORS.values()
               if re.fullmatch(a.kind, kind)), None)


def hours(kind: str, flops: float) -> Iterator[str]:
  """Yields a phrase on the device-hours of FLOPs, if JAX's `kind` is known."""
  known = of_kind(kind)
  if known:
    used = flops / USUAL_UTILISATION / known.flops_per_second / 3600
    yield (f'about {used:,.1f} device-hours at {USUAL_UTILISATION:.0%} of the '
           f'{known.precision} peak of a {known.name}')
