"""A function of one number read from a table, with as many derivatives as training through training needs."""

from collections.abc import Callable

import torch

from mnist1d.settings import get_device


def tabulate(
    function: Callable[[torch.Tensor], torch.Tensor],
    cells: int = 4096,
    limit: float = 10.0,
    *,
    frozen: bool = True,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that acts on every number by itself, by Taylor's formula around the centre of the number's cell.

    The function and its first two derivatives are computed once, in the centres of all cells. What reads them can be
    differentiated twice by its argument and, unless `frozen`, by the parameters of the function. The error is that of
    Taylor's formula, half a cell from its centre.

    Parameters
    ----------
    function
        Takes and gives (cell,). A kink is exact where two cells meet, as at zero with an even number of cells.
    cells : int
        Cells of equal width on [-limit, limit].
    limit : float
        Beyond it the function goes on as a straight line.
    frozen : bool
        Whether the graph from the table to the parameters of the function is cut.

    Returns
    -------
    callable
        Reads the table at a tensor of any shape. NaN stays NaN, and an infinite number becomes NaN.
    """
    centres = (((torch.arange(cells) + 0.5) * 2 / cells - 1) * limit).to(get_device()).requires_grad_()

    def differentiate(y):
        if not y.requires_grad:  # of a constant
            return torch.zeros_like(centres)
        return torch.autograd.grad(y.sum(), centres, create_graph=True, materialize_grads=True)[0]

    value = function(centres)
    slope = differentiate(value)
    curvature = differentiate(slope)
    curvature = torch.cat([0 * curvature[:1], curvature[1:-1], 0 * curvature[-1:]])  # straight lines go on outside
    table = [t.detach() if frozen else t for t in (value, slope, curvature)]

    def read(z):
        cell = ((z.detach() + limit) * (cells / (2 * limit))).floor().clamp(0, cells - 1).nan_to_num()
        distance = z - ((cell + 0.5) * (2 * limit / cells) - limit)
        value, slope, curvature = (t.index_select(0, cell.long().flatten()).view(z.shape) for t in table)
        return value + distance * (slope + distance * curvature / 2)

    return read
