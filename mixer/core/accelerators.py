"""Accelerators by name: what they can do at most, and what they hold.

A device is what JAX calls one: of TPU v2, v3 and 7x a core, of which a chip has
two; else a chip or a card. The sources stand beside the rows; the products are
dense, without sparsity.
"""
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device.

  Attributes:
    name: for people, and of --accelerator.
    kind: a pattern of JAX's `device_kind`.
    flops_per_second: peak of matrix products in `precision`.
    memory_bytes: of the device.
    devices_per_chip: 2 where JAX shows the two cores of a chip.
    precision: bfloat16, or float32 where products in bfloat16 are no faster.
  """
  name: str
  kind: str
  flops_per_second: float
  memory_bytes: int
  devices_per_chip: int = 1
  precision: str = 'bfloat16'


def _table(rows):
  return {name: Accelerator(name, kind, flops * 1e12 / per_chip,
                            gib * 2**30 // per_chip, per_chip, *precision)
          for name, kind, flops, gib, per_chip, *precision in rows}


# Name, JAX's device kind, TFLOP/s and GiB of a chip or card, devices of it; the
# precision where it is not bfloat16.
ACCELERATORS = _table((
    # https://docs.cloud.google.com/tpu/docs has a page for each but 8i, which
    # is in JAX 0.10.2's own table (jax/_src/pallas/mosaic/tpu_info.py).
    ('v2', 'TPU v2', 45, 16, 2),
    ('v3', 'TPU v3', 123, 32, 2),
    ('v4', 'TPU v4', 275, 32, 1),
    ('v5e', 'TPU v5 lite|TPU v5e', 197, 16, 1),
    ('v5p', 'TPU v5p?', 459, 95, 1),
    ('v6e', 'TPU v6 lite|TPU v6e', 918, 32, 1),
    ('7x', 'TPU7x', 2307, 192, 2),
    ('8i', 'TPU8i', 1101, 288, 2),
    # NVIDIA's data sheets (https://www.nvidia.com/en-us/data-center/NAME), of
    # GB200's and B300's racks and boards divided by their GPUs. Volta and
    # Turing have fast products in float16, not in bfloat16.
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
    # https://www.amd.com/en/products/accelerators/instinct, a sheet for each.
    ('MI300X', 'AMD Instinct MI300X', 1307, 192, 1),
    ('MI355X', 'AMD Instinct MI355X', 2516, 288, 1),
))


def of_kind(kind):
  """The accelerator of JAX's `device_kind`, or None: 'NVIDIA L40S' is no L4."""
  return next((a for a in ACCELERATORS.values()
               if re.fullmatch(a.kind, kind)), None)
