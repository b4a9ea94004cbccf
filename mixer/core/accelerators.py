"""Accelerators by name: what they can do at most, and what they hold.

A device is what JAX calls one: of TPU v2, v3 and 7x a core, of which a chip has
two; else a chip or a card. Sources, read in November 2026: the pages of each
TPU at https://docs.cloud.google.com/tpu/docs, and NVIDIA's and AMD's data
sheets of each GPU, dense products without sparsity.
"""
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device.

  Attributes:
    name: for people, and of --accelerator.
    kind: a pattern of JAX's `device_kind`.
    flops_per_second: peak of matrix products in bfloat16; of V100 and T4, which
      lack it, in float16.
    memory_bytes: of the device.
    devices_per_chip: 2 where JAX shows the two cores of a chip.
  """
  name: str
  kind: str
  flops_per_second: float
  memory_bytes: int
  devices_per_chip: int = 1


def _table(rows):
  return {name: Accelerator(name, kind, flops * 1e12 / per_chip,
                            gib * 2**30 // per_chip, per_chip)
          for name, kind, flops, gib, per_chip in rows}


# Name, JAX's device kind, TFLOP/s and GiB of a chip or card, devices of it.
ACCELERATORS = _table((
    ('v2', 'TPU v2', 45, 16, 2),
    ('v3', 'TPU v3', 123, 32, 2),
    ('v4', 'TPU v4', 275, 32, 1),
    ('v5e', 'TPU v5 lite|TPU v5e', 197, 16, 1),
    ('v5p', 'TPU v5p?', 459, 95, 1),
    ('v6e', 'TPU v6 lite|TPU v6e', 918, 32, 1),
    ('7x', 'TPU7x', 2307, 192, 2),
    ('V100', 'Tesla V100.*', 125, 16, 1),
    ('T4', '(Tesla|NVIDIA) T4', 65, 16, 1),
    ('A100-40GB', 'NVIDIA A100.*40GB', 312, 40, 1),
    ('A100-80GB', 'NVIDIA A100.*80GB.*', 312, 80, 1),
    ('L4', 'NVIDIA L4', 121, 24, 1),
    ('H100', 'NVIDIA H100 80GB HBM3', 989, 80, 1),
    ('H100-PCIe', 'NVIDIA H100 PCIe', 756, 80, 1),
    ('H200', 'NVIDIA H200', 989, 141, 1),
    ('B200', 'NVIDIA B200', 2250, 180, 1),
    ('MI300X', 'AMD Instinct MI300X', 1307, 192, 1),
))


def of_kind(kind):
  """The accelerator of JAX's `device_kind`, or None: 'NVIDIA L40S' is no L4."""
  return next((a for a in ACCELERATORS.values()
               if re.fullmatch(a.kind, kind)), None)
