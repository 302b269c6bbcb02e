import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from massive_jax.parallel import AXES, batch_axes, check_mesh, make_mesh, mesh_sizes, mesh_text, parse_mesh, spec_of


def abstract(data=1, fsdp=1, tensor=1, expert=1):
    return AbstractMesh((data, fsdp, tensor, expert), AXES)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data:2,fsdp:4,tensor:2", (2, 4, 2, 1)),
        (" expert : 4 , data:02", (2, 1, 1, 4)),
        ("tensor:1", (1, 1, 1, 1)),
        ("8,1", (1, 8, 1, 1)),
        ("2, 4", (1, 2, 4, 1)),
    ],
)
def test_a_mesh_as_a_flag_gives_it(text, sizes):
    assert list(parse_mesh(text).items()) == list(zip(AXES, sizes, strict=True))
    assert parse_mesh(mesh_text(parse_mesh(text))) == parse_mesh(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("2", "give two numbers of devices"),
        ("", "give two numbers of devices"),
        ("data=2", "give two numbers of devices"),
        ("1,2,3", "give two numbers of devices"),
        (("8", "1"), "give two numbers of devices"),
        ("data:2,4", "give two numbers of devices"),
        ("0,1", "'0' devices along fsdp"),
        ("fsdp:0", "'0' devices along fsdp"),
        ("fsdp:-1", "'-1' devices along fsdp"),
        ("fsdp:", "'' devices along fsdp"),
        ("fsdp:2.0", "devices along fsdp"),
        ("fsdp:²", "devices along fsdp"),
        ("fsdp:9999999999", "devices along fsdp"),
        ("model:2", "there is no axis 'model', only data, fsdp, tensor, expert"),
        ("fsdp:2,fsdp:2", "fsdp is there twice"),
    ],
)
def test_what_is_no_mesh(text, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        parse_mesh(text)
    assert "\n" not in str(raised.value)


def test_two_numbers_are_fsdp_and_tensor():
    assert mesh_sizes((4, 2)) == mesh_sizes((1, 4, 2, 1)) == parse_mesh("4,2")
    assert dict(make_mesh(1, 1).shape) == dict(make_mesh(data=1, fsdp=1).shape) == dict.fromkeys(AXES, 1)
    check_mesh(make_mesh())
    for wrong in ((4,), (4, 2, 1), (0, 1), (2.0, 1), (True, 1)):
        with pytest.raises(ValueError, match=r"mesh is .*, expected two numbers of devices"):
            mesh_sizes(wrong)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"data": 0}, "fsdp is 0; give a whole number"),
        ({"data": 2.5, "tensor": 1}, "data is 2.5; give a whole number"),
        ({"model": 2, "fsdp": 1}, "model is 2: the axis is called tensor"),
        ({"data": 2**20, "model": 2}, f"a mesh of {2**20} × 2 needs {2**21} devices"),
        ({"data": 2**20, "expert": 2}, f"a mesh of data:{2**20},expert:2 needs {2**21} devices"),
    ],
)
def test_meshes_that_cannot_be(given, problem):
    with pytest.raises(ValueError, match=problem):
        make_mesh(**given)


def test_a_mesh_that_is_not_ours():
    for mesh in (jax.make_mesh((1, 1), ("data", "model")), (4, 1), "data:1"):
        with pytest.raises(ValueError, match=r"give what massive_jax.parallel.make_mesh makes"):
            check_mesh(mesh)


@pytest.mark.parametrize(
    ("size", "mesh", "axes"),
    [
        (8, abstract(data=2, fsdp=4), ("data", "fsdp")),
        (2, abstract(data=2, fsdp=4), ("data",)),
        (4, abstract(data=8, fsdp=4), ("fsdp",)),
        (3, abstract(data=2, fsdp=4), None),
        (4, abstract(tensor=4, expert=2), None),
    ],
)
def test_what_a_batch_is_split_over(size, mesh, axes):
    assert batch_axes(size, mesh) == axes


def test_few_key_heads_are_on_every_device():
    mesh = abstract(fsdp=2, tensor=4)
    assert spec_of("LDKN", (3, 8, 2, 4), mesh) == PartitionSpec(None, "fsdp", None, None)
    assert spec_of("LDHN", (3, 8, 8, 4), mesh) == PartitionSpec(None, "fsdp", "tensor", None)
    # Copies of the parameters are whole.
    assert spec_of("LDHN", (3, 8, 8, 4), abstract(data=8)) == PartitionSpec(None, None, None, None)
