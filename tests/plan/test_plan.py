"""Plans against what is declared, what jax counts and what is compiled."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from massive_jax import zoo
from massive_jax.chips import CHIPS, Chips, chip_of
from massive_jax.evaluate.layers import CAPTURE
from massive_jax.models import ExpertsConfig, build, declared
from massive_jax.parallel import parse_mesh, spec_of
from massive_jax.plan import Estimate, Job, abstract_mesh, abstract_params, bytes_a_chip, check_fits, config_of, meshes
from massive_jax.plan import estimate as estimate_of
from massive_jax.plan.collectives import Collective, in_program
from massive_jax.plan.place import share_of
from massive_jax.plan.programs import forward
from massive_jax.plan.work import work_of
from massive_jax.weights.loader import count_params
from tests.fixtures.tiny import TINY, TINY_VISION

EXPERTS = dataclasses.replace(TINY, mlp="experts", experts=ExpertsConfig(4, 2))
ONE = parse_mesh("1,1")


class TestChips:
    @pytest.mark.parametrize(
        ("text", "count", "name", "topology"),
        [
            ("v5e-16", 16, "v5e-16", "v5e:4x4"),
            ("v5p-8", 4, "v5p-8", "v5p:2x2x1"),
            ("V5P-16", 8, "v5p-16", "v5p:2x2x2"),
            ("v5litepod-8", 8, "v5e-8", "v5e:2x4"),
            ("v6e-1", 1, "v6e-1", "v6e:1x1"),
            ("h100:8", 8, "h100:8", None),
            ("h200", 1, "h200:1", None),
            ("h100-pcie:2", 2, "h100-pcie:2", None),
        ],
    )
    def test_names(self, text, count, name, topology):
        chips = Chips.parse(text)
        assert (chips.count, str(chips), chips.topology) == (count, name, topology)
        assert Chips.parse(str(chips)) == chips

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("v5e-3", "no set of that size; there are v5e-1, v5e-4"),
            ("v5p-4", "no set of that size; there are v5p-8, v5p-16"),
            ("v5p", "no set of that size"),
            ("h100:3", "there are h100:1, h100:2"),
            ("v9-8", "not known; known: v4, v5e"),
            ("", "not known"),
            ("v5e-", "not known"),
        ],
    )
    def test_what_is_none(self, text, problem):
        with pytest.raises(ValueError, match=problem) as raised:
            Chips.parse(text)
        assert "\n" not in str(raised.value)

    def test_a_device_is_the_chip_of_its_longest_name(self):
        assert chip_of("TPU v5 lite") is CHIPS["v5e"]
        assert chip_of("TPU v5p") is chip_of("TPU v5") is CHIPS["v5p"]
        assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
        assert chip_of("NVIDIA H100 PCIe") is CHIPS["h100-pcie"]
        assert chip_of("cpu") is None


class TestPlaces:
    @pytest.mark.parametrize("mesh", ["1,1", "fsdp:2,tensor:2", "data:2,fsdp:4", "tensor:4,expert:2"])
    @pytest.mark.parametrize("config", [TINY, EXPERTS, TINY_VISION], ids=["gqa", "experts", "vision"])
    def test_parameters_are_their_shards_to_the_byte(self, config, mesh):
        on, expected = abstract_mesh(parse_mesh(mesh)), 0
        for it in declared(build(config)).values():
            parts = math.prod(on.shape[axis] for axis in spec_of(it.axes, it.shape, on) if axis is not None)
            assert math.prod(it.shape) % parts == 0
            expected += 4 * math.prod(it.shape) // parts
        assert bytes_a_chip(abstract_params(config, on)) == expected
        if on.size == 1:
            assert expected == 4 * count_params(build(config))

    def test_a_preset_is_as_large_as_published(self):
        config = dataclasses.replace(config_of("llama2_70b"), dtype="bfloat16")
        assert bytes_a_chip(abstract_params(config)) == 2 * zoo.PRESETS["llama2_70b"].num_params
        vectors = 2 * 8192 * (2 * 80 + 1)  # the norms' scales are whole everywhere
        a_chip = bytes_a_chip(abstract_params(config, abstract_mesh(parse_mesh("fsdp:4,tensor:4"))))
        assert a_chip == (2 * zoo.PRESETS["llama2_70b"].num_params - vectors) // 16 + vectors

    def test_a_share_has_its_heads_and_no_more_key_heads_than_they_need(self):
        share = share_of(TINY, abstract_mesh(parse_mesh("fsdp:2,tensor:4")))
        assert (share.num_heads, share.num_kv_heads, share.intermediate_size, share.vocab_size) == (1, 1, 12, 65)
        assert share.hidden_size == TINY.hidden_size
        of_experts = share_of(EXPERTS, abstract_mesh(parse_mesh("expert:2"))).experts
        assert (of_experts.num_experts, of_experts.num_chosen) == (2, 1)

    def test_meshes_of_chips(self):
        found = [(m["fsdp"], m["data"], m["tensor"]) for m in meshes(8, TINY)]
        assert found == [(8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2), (2, 1, 4), (1, 2, 4)]
        assert [*meshes(1, TINY)] == [ONE]
        assert all(math.prod(m.values()) == 8 for m in meshes(8, EXPERTS))
        assert any(m["expert"] == 4 for m in meshes(8, EXPERTS))


class TestWork:
    def test_loops_count_as_often_as_they_run_and_what_is_held_is_what_is_needed_later(self):
        def run(x, weights):
            def step(x, w):
                return jnp.tanh(x @ w) * 2, jnp.sum(x)

            return jax.lax.scan(step, x, weights)

        x, weights = jax.ShapeDtypeStruct((16, 32), np.float32), jax.ShapeDtypeStruct((5, 32, 32), np.float32)
        found = work_of(jax.jit(run).trace(x, weights))
        assert found.flops == 5 * 2 * 16 * 32 * 32
        size = 4 * 16 * 32
        assert found.moved == 5 * (2 * size + 4 * 32 * 32 + size)  # and the sum reads x
        assert size <= found.held <= 3 * size

    def test_elementwise_results_are_not_written_down(self):
        x = jax.ShapeDtypeStruct((64, 64), np.float32)
        held = [work_of(jax.jit(f).trace(x)).held for f in (lambda x: (x + 1) @ x, lambda x: jnp.sin(x + 1) @ x)]
        assert held == [4 * 64 * 64] * 2
        twice = work_of(jax.jit(lambda x: (y := jnp.exp(x), (y @ x) @ (y @ y))[1]).trace(x)).held
        assert twice > held[0]

    def test_the_larger_branch_counts(self):
        x = jax.ShapeDtypeStruct((8, 8), np.float32)
        run = jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x))
        assert work_of(run.trace(x)).flops == 2 * 2 * 8**3


BLOCK = dataclasses.replace(TINY, num_layers=1, hidden_size=128, intermediate_size=512, head_dim=32)


@pytest.fixture(scope="module")
def both():
    """One program of one block, as planned and as compiled for one device, and its call."""
    program = forward("layers", CAPTURE, 2, 32, 1)
    call = program.make(BLOCK, 2, None)
    compiled = call.function.lower(*call.arguments).compile()
    return estimate_of(program, BLOCK, Chips.parse("v5e-1"), ONE), compiled, call


class TestCompiled:
    """What jax says of that program."""

    def test_flops(self, both):
        """Jax counts the products, and besides, up to 5 % here, what is done element by element."""
        estimate, compiled, _ = both
        assert 0.95 < estimate.flops / compiled.cost_analysis()["flops"] <= 1

    def test_memory(self, both):
        estimate, compiled, call = both
        memory = compiled.memory_analysis()
        slots, tokens = 4 * BLOCK.num_layers, 4 * 2 * 32
        head = 4 * BLOCK.vocab_size * BLOCK.hidden_size  # not read by this program, and in memory all the same
        assert estimate.memory["parameters"] == bytes_a_chip(call.parts["parameters"])
        assert memory.argument_size_in_bytes == estimate.memory["parameters"] - head + slots + tokens
        hidden = 4 * 2 * 32 * BLOCK.hidden_size
        pointers = memory.output_size_in_bytes - hidden - estimate.memory["captured"]
        assert 0 <= pointers <= 256  # a pointer for each result


SAMPLE = """
HloModule jit_run
%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %g = bf16[8,16]{1,0} all-gather(%w), channel_id=3, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %s = (bf16[2,8]{1,0}, bf16[2,8]{1,0}) all-reduce-start(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}
%part (p: bf16[4,16]) -> bf16[8,16] {
  %g.2 = bf16[8,16]{1,0} all-gather(%w), channel_id=3, replica_groups=mesh['a'=1,'b'=2,'c'=2] {'b'}, dimensions={0}
}
%cond (p: (s32[], bf16[2,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(80)
  %c = pred[] compare(%a, %b)
}
ENTRY %main (a: bf16[2,8]) -> bf16[2,8] {
  %w0 = (s32[], bf16[2,8]) while(%t), condition=%cond, body=%body
  %r = f32[4]{0} all-reduce(%z), replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def test_collectives_of_a_program_by_axis():
    shape = {"data": 1, "fsdp": 2, "tensor": 2, "expert": 1}
    assert in_program(SAMPLE, shape) == [
        Collective("all-gather", "fsdp", 2, 80, 80 * 2 * 8 * 16),
        Collective("all-reduce", "fsdp+tensor", 4, 1, 16),
        Collective("all-reduce", "tensor", 2, 80, 80 * 2 * 2 * 8),
    ]


@dataclasses.dataclass(frozen=True)
class Weighed(Job):
    """A job whose memory is a formula: 200 GB of parameters in float32, split over all chips, and the batch's."""

    tried: list = dataclasses.field(default_factory=list)

    def estimates(self, sizes):
        self.tried.append((str(self.chips), self.config.dtype, self.batch, self.length, dict(sizes)))
        parts = math.prod(sizes.values())
        params = 200e9 / parts * (self.config.dtype == "float32" or 0.5)
        batch = 1e6 * self.batch * self.length / sizes["fsdp"]
        return [Estimate("x", 1, {"parameters": int(params), "activations": int(batch)}, 0, 0, (), 1.0, 0, 0)]


def weighed(chips, *, dtype="float32", batch=4, length=512, **more):
    config = dataclasses.replace(TINY, dtype=dtype)
    return Weighed(lambda B, T: [], config, Chips.parse(chips), batch, length, **more)


class TestAdvice:
    def refusal(self, job, mesh):
        sizes = parse_mesh(mesh)
        with pytest.raises(ValueError, match="needs .* GB a chip") as raised:
            check_fits(job, sizes, job.estimates(sizes))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_what_fits_is_not_refused(self):
        job = weighed("v5p-16")
        sizes = parse_mesh("fsdp:8")
        check_fits(job, sizes, job.estimates(sizes))

    def test_another_mesh_a_smaller_batch_and_dtype(self):
        found = self.refusal(weighed("v5e-16", batch=8, length=1024), "tensor:16")
        assert found.startswith("float32 on v5e-16, mesh tensor:16, needs 20.7 GB a chip, of whose 17.2 programs have")
        assert "--mesh=fsdp:16" in found
        assert "--windows=1" in found
        assert "--dtype=bfloat16" in found

    def test_more_chips(self):
        job = weighed("v5e-4", dtype="bfloat16")
        found = self.refusal(job, "fsdp:4")
        assert re.search(r"It fits with --chips=v5e-8 --mesh=\S+\.$", found)
        # Smaller ones come first, and nothing is tried after what fits.
        assert {chips for chips, *_ in job.tried} <= {"v5e-4", "v5e-8"}

    def test_a_training_is_planned_for_meshes_that_its_batch_divides_over(self):
        tried = weighed("v5e-16", dtype="bfloat16", batch=12, divides=True)
        assert tried.best()[0] == parse_mesh("fsdp:4,tensor:4")
        job = weighed("v5e-16", batch=3, divides=True)
        with pytest.raises(ValueError, match="no mesh of 16 chips splits a batch of 3 and 4 heads evenly"):
            job.best()
        found = self.refusal(weighed("v5e-8", batch=2, divides=True, cuts=False), "fsdp:2,tensor:4")
        assert found.endswith("It fits with --dtype=bfloat16 --mesh=fsdp:2,tensor:4.")

    def test_nothing_near(self):
        assert self.refusal(weighed("h200:1", batch=3000, length=1024, cuts=False), "1,1").endswith(
            "Nothing near it fits: give more chips, a smaller model, or a shorter context."
        )


CHILD = """
import dataclasses, json
import jax
from massive_jax.chips import Chips
from massive_jax.evaluate.layers import CAPTURE
from massive_jax.parallel import make_mesh, parse_mesh
from massive_jax.plan import compile_program, estimate
from massive_jax.plan.programs import forward
from tests.fixtures.tiny import TINY

found = {}
config = dataclasses.replace(TINY, num_heads=8, num_kv_heads=4, hidden_size=256, intermediate_size=512)
for text in ("data:2,tensor:4", "data:4,tensor:2", "fsdp:2,tensor:4", "data:2,fsdp:2,tensor:2", "fsdp:8"):
    program, sizes = forward("layers", CAPTURE, 8, 32, 1), parse_mesh(text)
    compiled = compile_program(program, config, make_mesh(**sizes))
    planned = estimate(program, config, Chips.parse("v5e-8"), sizes)
    sent = [one.kind for one in compiled.collectives]
    found[text] = planned.memory, planned.total, compiled.arguments, compiled.total, sent
print(json.dumps(found))
"""


@pytest.mark.slow
def test_eight_devices():
    """Parameters to the byte, and where none are gathered all that is held within a fifth, of toys and in float32.

    Not along fsdp, nor in 16 bits: a CPU lays what is gathered out anew, and multiplies in float32. `make check-tpu`
    holds a mesh with fsdp beside a TPU's compiler.
    """
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == 5
    for name, (memory, total, arguments, compiled, sent) in found.items():
        assert 0 <= arguments - memory["parameters"] < 4096, name  # tokens, and slots of the layers
        assert ("gathered parameters" in memory) is ("fsdp" in name), name
        if "fsdp" in name:
            assert "all-gather" in sent, name
        else:
            assert total == pytest.approx(compiled, rel=0.2), name
        if "tensor" in name:
            assert "all-reduce" in sent, name
