"""analysis/cycles: the compiler's estimates, read from a program's text."""
import pytest

from mixer.analysis import cycles

# A program as XLA prints one, cut short: a loop of three turns, a fusion, a
# scalar, and a collective, which has no estimate.
TEXT = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %inner = f32[8,128]{1,0} add(%p, %p), backend_config={"estimated_cycles":"999999"}
}

%body.1 (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[], f32[8,128]{1,0}) parameter(0)
  %fusion.7 = f32[8,128]{1,0:T(8,128)} fusion(%state), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/jvp(Net)/Block_2/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %out = (s32[], f32[8,128]{1,0}) tuple(%state, %fusion.7)
}

ENTRY %main.2_spmd (param: f32[8,128]) -> f32[8,128] {
  %param = f32[8,128]{1,0} parameter(0)
  %one = s32[]{:T(256)} add(%param, %param), metadata={op_name="jit(step)/add"}
  %while.3 = (s32[], f32[8,128]{1,0}) while(%param), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %fusion.8 = (f32[8]{0}, f32[8,128]{1,0}) fusion(%param), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(step)/transpose(jvp(Net))/Block_0/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"40"}}
  %all-reduce.4 = f32[8,128]{1,0} all-reduce(%fusion.8), to_apply=%sum.1
  ROOT %copy.9 = f32[8,128]{0,1:T(8,128)} copy(%all-reduce.4), backend_config={"window_config":{"estimated_cycles":"2"}}
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_a_fusion_once():
  ops = cycles.ops(TEXT)
  assert {op.name: op.cycles for op in ops} == {
      'fusion.7': 300, 'fusion.8': 40, 'all-reduce.4': None, 'copy.9': 2}
  assert cycles.total(ops) == 342


def test_ops_without_an_estimate_are_named_unless_they_are_scalars():
  assert cycles.without_estimate(cycles.ops(TEXT)) == {'all-reduce': 1}


def test_layers_add_up_over_blocks():
  assert cycles.dearest(cycles.ops(TEXT), 2) == [
      ('Block/mlp/dot_general', 300), ('Block/mlp/dot_general (gradient)', 40)]


def test_the_peak_of_a_core_of_v3_is_61_6_teraflops():
  """The published peak of a chip of two cores is 123 TFLOPs."""
  flops = 61.6e12
  second = 940e6
  assert cycles.seconds(second, 'v3') == 1
  assert cycles.utilisation(flops, second, 'v3') == pytest.approx(1, rel=1e-3)
  assert cycles.seconds(1, 'v6e') is None
  assert cycles.utilisation(1, 1, 'v6e') is None


@pytest.mark.parametrize('generation,teraflops', [
    ('v4', 275), ('v5e', 197), ('v5p', 459)])
def test_peaks_of_chips_are_the_published_ones(generation, teraflops):
  second = cycles.CLOCK[generation]
  assert cycles.utilisation(teraflops * 1e12, second, generation
                            ) == pytest.approx(1, rel=3e-3)
