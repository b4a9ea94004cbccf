"""core/accelerators: accelerators by JAX's device kind, and their peaks."""
import pytest

from mixer.core import accelerators


@pytest.mark.parametrize('kind,name', [
    ('TPU v3', 'v3'), ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'), ('TPU7x', '7x'), ('NVIDIA H200', 'H200'),
    ('NVIDIA H100 80GB HBM3', 'H100'), ('NVIDIA A100-SXM4-80GB', 'A100-80GB'),
    ('NVIDIA A100-SXM4-40GB', 'A100-40GB'), ('NVIDIA L4', 'L4'),
    ('NVIDIA A100-PCIE-40GB', 'A100-40GB'),
    ('NVIDIA A100 80GB PCIe', 'A100-80GB'), ('NVIDIA L40S', 'L40S'),
    ('NVIDIA H100 PCIe', 'H100-PCIe'), ('cpu', None),
    ('Tesla V100-SXM2-16GB', 'V100'), ('Tesla V100-SXM2-32GB', 'V100-32GB'),
    ('NVIDIA A10', 'A10'), ('NVIDIA A10G', None), ('NVIDIA B200', 'B200'),
    ('NVIDIA GB200', 'GB200'), ('NVIDIA GH200 480GB', 'GH200')])
def test_the_device_kind_of_jax_selects_the_accelerator(kind, name):
  found = accelerators.of_kind(kind)
  assert (found and found.name) == name


def test_a_device_of_tpu_v3_is_half_a_chip():
  v3 = accelerators.ACCELERATORS['v3']
  assert (v3.flops_per_second, v3.memory_bytes) == (61.5e12, 16 * 2**30)


def test_gpus_without_fast_bfloat16_have_their_float32_peak():
  """Their float16 peak is higher, but no run computes in float16."""
  found = {a.name for a in accelerators.ACCELERATORS.values()
           if a.precision == 'float32'}
  assert found == {'V100', 'V100-32GB', 'T4'}
  assert accelerators.ACCELERATORS['V100'].flops_per_second == 15.7e12
