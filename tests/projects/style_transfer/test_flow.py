import math

import pytest
import torch
from torch import Tensor

from projects.style_transfer.flow import Flow, Method, drawn_times, even_times, matching_loss
from projects.style_transfer.routes import NoiseRoute
from projects.style_transfer.velocity import GRID, VelocityNet


def decay(latents: Tensor, time: Tensor, style: Tensor) -> Tensor:
    """dz/dt = -(1 + style) (1 + t) z, an exponential decay. Over a unit of time it integrates to z exp(-(1 + style)
    3/2).
    """
    return -(1 + style[:, None, None, None]) * (1 + time[:, None, None, None]) * latents


STYLES = torch.tensor([0, 1])


@pytest.mark.parametrize("method", ["heun", "midpoint"])
def test_the_error_shrinks_with_the_square_of_the_steps(method: Method) -> None:
    start = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    exact = torch.tensor([math.exp(-1.5), math.exp(-3.0)])
    few, many = (
        (Flow(decay, even_times(steps), method).generate(start, STYLES).flatten() - exact).abs() for steps in (20, 40)
    )
    assert (few / many).tolist() == pytest.approx([4, 4], rel=0.15)


@pytest.mark.parametrize("method", ["heun", "midpoint"])
def test_the_way_back_undoes_the_way_there(method: Method) -> None:
    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (10, 20):
        flow = Flow(decay, even_times(steps), method)
        errors.append(float((NoiseRoute(flow).translate(start, STYLES, STYLES) - start).norm() / start.norm()))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 3


def test_translating_inverts_with_one_style_and_generates_with_the_other() -> None:
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    flow = Flow(decay, even_times(200))
    there = NoiseRoute(flow).translate(start, torch.tensor([1]), torch.tensor([0]))
    assert float(there) == pytest.approx(math.exp(3.0 - 1.5), rel=1e-3)


def test_noise_comes_only_when_asked_for() -> None:
    start = torch.randn(2, 1, 4, 4)
    assert torch.equal(
        Flow(decay, even_times(4)).generate(start, STYLES), Flow(decay, even_times(4)).generate(start, STYLES)
    )
    warm = Flow(decay, even_times(4), temperature=0.5)
    assert not torch.equal(warm.generate(start, STYLES), warm.generate(start, STYLES))


def test_drawn_times_rise_from_0_to_1_and_are_others_each_time() -> None:
    for steps in (1, 2, 7):
        times = drawn_times(steps)
        assert (times[0], times[-1], len(times)) == (0, 1, steps + 1)
        assert list(times) == sorted(times)
    assert drawn_times(4) != drawn_times(4)


def test_the_way_back_undoes_the_way_there_on_uneven_times_too() -> None:
    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    flow = Flow(decay, drawn_times(20))
    assert float((NoiseRoute(flow).translate(start, STYLES, STYLES) - start).norm() / start.norm()) < 0.03


def test_the_true_velocity_of_a_single_point_has_no_matching_loss() -> None:
    point = torch.full((64, 2, 4, 4), 0.7)

    def towards(latents: Tensor, time: Tensor, style: Tensor) -> Tensor:
        return (0.7 - latents) / (1 - time[:, None, None, None])

    torch.manual_seed(0)
    assert float(matching_loss(towards, point, torch.zeros(64, dtype=torch.long))) < 1e-6
    assert float(matching_loss(lambda z, t, s: 0 * z, point, torch.zeros(64, dtype=torch.long))) == pytest.approx(
        1 + 0.7**2, rel=0.1
    )


def test_a_new_network_stands_still_and_takes_latents_of_any_size() -> None:
    net = VelocityNet(5, 3, width=8)
    for size in ((GRID, GRID), (3 * GRID, 2 * GRID)):
        velocity = net(torch.randn(3, 5, *size), torch.rand(3), torch.arange(3))
        assert velocity.shape == (3, 5, *size)
        assert not velocity.any()


def test_a_network_tells_styles_and_times_apart_once_it_has_learnt_to() -> None:
    torch.manual_seed(0)
    net = VelocityNet(2, 2, width=8)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    data = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4).repeat(16, 1, 1, 1)
    styles = torch.tensor([0, 1]).repeat(16)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = matching_loss(net, data, styles)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    with torch.no_grad():
        made = Flow(net, even_times(8)).generate(torch.randn(2, 2, 4, 4), torch.tensor([0, 1])).mean((1, 2, 3))
    assert made[0] < -0.5
    assert made[1] > 0.5
