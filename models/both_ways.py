"""Two GRUs over rows of tokens, one from each end.

`both_ways` is for training: it is differentiated in one order. `packed_both_ways` gives the same
states without reading the padding, in a bit more than half the time.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Inputs = Callable[[Tensor], Tensor]
"""(…) int64 ids -> (…, width) float32, what the GRUs read."""


def both_ways(
    inputs: Inputs, ids: Tensor, lengths: Tensor, forwards: nn.GRU, backwards: nn.GRU
) -> Tensor:
    """Return (n, width, 2 hidden); what stands beyond a row's length means nothing.

    Args:
        inputs: gives what is read of the ids.
        ids: (n, width) int64.
        lengths: (n,) int64, 1 or more.
        forwards: reads from the first token on.
        backwards: reads from the last token of each row on.
    """
    read = inputs(ids)
    ahead = forwards(read)[0]
    # Each row is turned round within its own length, so that padding comes last both ways.
    places = torch.arange(ids.shape[1]).expand_as(ids)
    last = lengths[:, None] - 1
    turned = torch.where(places <= last, last - places, places)[..., None]
    back = backwards(torch.gather(read, 1, turned.expand_as(read)))[0]
    return torch.cat([ahead, torch.gather(back, 1, turned.expand_as(back))], dim=-1)


def packed_both_ways(
    inputs: Inputs, ids: Tensor, lengths: Tensor, forwards: nn.GRU, backwards: nn.GRU
) -> Tensor:
    """Return and take the same as `both_ways`."""
    packed = pack_padded_sequence(ids, lengths, batch_first=True, enforce_sorted=False)
    read = inputs(packed.data)  # (tokens, width)
    start = read.new_zeros(2, len(ids), forwards.hidden_size)
    weights: list[Tensor] = [*forwards.parameters(), *backwards.parameters()]
    # has biases, layers, dropout, training, bidirectional
    states = torch.gru(read, packed.batch_sizes, start, weights, True, 1, 0.0, False, True)[0]
    apart, _ = pad_packed_sequence(
        packed._replace(data=states), batch_first=True, total_length=ids.shape[1]
    )
    return apart
