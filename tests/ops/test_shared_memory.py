"""What an operator writes in place must not share memory with what it reads."""

import pytest
import torch

import gdfq
from gdfq.ops._checks import check_written
from tests.ops.examples import EXAMPLES

READ = ("x", "running_mean", "running_var", "weight", "bias", "residual")


def read_by(name, given):
    return [argument for argument in READ if argument in given and argument not in
            EXAMPLES[name].written]  # fmt: skip


every_pair = pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        (name, written, read)
        for name, example in EXAMPLES.items()
        for written in example.written
        for read in read_by(name, example.make((2, 3, 5, 7), torch.float32))
    ],
)


def side_by_side(given, written, read, shift):
    """``read`` moved to where it reaches ``shift`` bytes into ``written``, moved behind it."""
    buffer, tensor = given[written], given[read]
    end = -tensor.nbytes % 8 + tensor.nbytes
    start = end - tensor.nbytes
    room = torch.zeros(end + buffer.nbytes + 8, dtype=torch.uint8)
    place = (end - shift) // buffer.element_size() * buffer.element_size()
    moved = {
        read: room[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor),
        written: room[place : place + buffer.nbytes].view(buffer.dtype).view(buffer.shape),
    }
    return {**given, **moved}, (place, place + buffer.nbytes - 1), (start, end - 1)


@every_pair
def test_overlap_names_both_arguments_and_their_bytes(name, written, read):
    given = EXAMPLES[name].make((2, 3, 5, 7), torch.float32)
    given, one, other = side_by_side(given, written, read, shift=1)
    message = (
        f"{written}, {read}: must not share memory, for {written} is written to; got bytes "
        f"{one[0]} to {one[1]} and {other[0]} to {other[1]} of one storage"
    )
    with pytest.raises(gdfq.InputError, match=message):
        EXAMPLES[name].function(**given)


@every_pair
def test_neighbours_in_one_storage_are_taken(name, written, read):
    given = EXAMPLES[name].make((2, 3, 5, 7), torch.float32)
    EXAMPLES[name].function(**side_by_side(given, written, read, shift=0)[0])


@pytest.mark.parametrize(("column", "row"), [(3, 1), (0, 0), (3, 4)])
def test_a_buffer_between_the_elements_that_are_read_is_taken(column, row):
    given = EXAMPLES["observe_fake_quantize"].make((2, 3), torch.float32)
    room = torch.randn(5, 4)
    given["x"] = room[1:4, :3].t()
    given["lo"] = room[row, column]
    EXAMPLES["observe_fake_quantize"].function(**given)


@pytest.mark.parametrize(
    "view",
    [
        lambda room: room[1:4, :3].t(),
        lambda room: room[2:3, 1:2].expand(6, 5),
        lambda room: room.view(-1).unfold(0, 4, 1),
    ],
    ids=["transposed", "expanded", "unfolded"],
)
def test_a_buffer_among_the_elements_that_are_read_is_refused(view):
    given = EXAMPLES["observe_fake_quantize"].make((2, 3), torch.float32)
    room = torch.randn(5, 4)
    given |= {"x": view(room), "average_hi": room[2, 1]}
    with pytest.raises(gdfq.InputError, match="average_hi, x: must not share memory"):
        EXAMPLES["observe_fake_quantize"].function(**given)


def test_tensors_without_storage_in_a_transform_are_taken():
    def loss(x, buffer):
        check_written({"buffer": buffer, "constant": torch.zeros(())}, {"x": x})
        return x.sum() + buffer

    gradient = torch.func.grad(loss)(torch.randn(3), torch.zeros(()))
    assert gradient.equal(torch.ones(3))
