"""Values over (t, s): cells, exact means over several maps, and where the picture shows them."""

from __future__ import annotations

import numpy as np
import torch

from training.flowmap.time_maps import CELL, INTERVALS, MARGIN, draw_time_map, grid_times, time_map


def test_values_land_in_the_cell_of_their_times_and_add_up() -> None:
    t, s = torch.tensor([1.0, 1.0, 0.5, 0.51]), torch.tensor([0.0, 0.0, 0.5, 0.49])
    total, count = time_map(t, s, torch.tensor([1.0, 3.0, 5.0, 7.0], requires_grad=True))
    half = INTERVALS // 2
    assert (total[INTERVALS, 0].item(), count[INTERVALS, 0].item()) == (4, 2)
    assert (total[half, half].item(), count[half, half].item()) == (12, 2)
    assert (total.sum().item(), count.sum().item()) == (16, 4)
    assert not total.requires_grad


def test_the_grid_names_the_centers_of_the_cells() -> None:
    t, s = grid_times()
    values = t + 10 * s
    total, count = time_map(t, s, values)
    assert (count == 1).all()
    assert torch.equal(total.flatten(), values.double())


def _color(image: np.ndarray, t: int, s: int) -> tuple[int, ...]:
    """The center of a cell: t to the right, s upwards."""
    x = MARGIN + t * CELL + CELL // 2
    y = MARGIN + (INTERVALS - s) * CELL + CELL // 2
    return tuple(image[y, x].tolist())


def test_the_picture_shows_each_value_at_its_times() -> None:
    values = np.full((INTERVALS + 1, INTERVALS + 1), 0.5)
    values[INTERVALS, 0], values[3, 1], values[7, 7] = 1.0, 0.0, np.nan
    values[1, 3] = 9.0  # s > t: not a pair of times
    image = np.asarray(draw_time_map(values, "loss"))
    assert _color(image, INTERVALS, 0) == (253, 231, 37)  # viridis' two ends
    assert _color(image, 3, 1) == (68, 1, 84)
    assert _color(image, 7, 7) == _color(image, 1, 3) == (200, 200, 200)
    assert _color(image, 5, 5) == _color(image, 9, 2)


def test_a_picture_of_nothing_is_gray() -> None:
    image = np.asarray(draw_time_map(np.full((17, 17), np.nan), "loss"))
    assert _color(image, 16, 0) == (200, 200, 200)
