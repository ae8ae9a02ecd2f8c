"""The costs of a program are read from its HLO text."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dropcluster_jax.runs.hlo import Collective, costs
from dropcluster_jax.training.data_parallel import DataParallel

# The form that libtpu prints: tiled layouts, comments in tuples, and estimates as JSON.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %double = bf16[8,128]{1,0:T(8,128)(2,1)} add(%p, %p)
}

%body (state: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %state = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %b = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"50"}
  %c = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%b), channel_id=1, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %c)
}

%condition (state: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[8,128]) -> bf16[8,512] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  %start = (bf16[8,128]{1,0}, bf16[8,512]{1,0}) all-gather-start(%out), channel_id=2, dimensions={1}
  %done = bf16[8,512]{1,0} all-gather-done(%start)
  ROOT %copy = bf16[8,512]{1,0} copy(%done), backend_config={"estimated_cycles":"9"}
}
"""
KIB = 1024


def test_loops_over_a_constant_range_count_every_iteration_and_others_once():
    result = costs(PROGRAM)
    assert result.cycles == 7 * 50 + 9
    assert result.collectives == (Collective("all-gather", 1, 2 * KIB), Collective("all-reduce", 7, 7 * 2 * KIB))
    assert costs(PROGRAM.replace("direction=LT", "direction=NE")).cycles == 50 + 9


def test_estimates_are_free_of_penalties_and_none_if_the_compiler_has_none():
    assert costs(PROGRAM.replace('cycles":"50"', f'cycles":"{2**60 + 50}"')).cycles == 7 * 50 + 9
    assert costs(PROGRAM.replace("estimated_cycles", "other")).cycles is None


def test_collectives_of_a_program_that_xla_compiled():
    mesh = DataParallel("shard_map").mesh
    mean = jax.shard_map(
        lambda x: jax.lax.pmean(x, "batch"), mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec()
    )
    compiled = jax.jit(mean).lower(jnp.ones((8 * mesh.size, 3), jnp.float32)).compile()
    result = costs(compiled.as_text())
    assert result.collectives == (Collective("all-reduce", 1, 8 * 3 * 4),)
    assert result.cycles is None
