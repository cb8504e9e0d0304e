"""The picture is well-formed, holds every expert and every request, and needs nothing else."""

from xml.etree import ElementTree as ET

from coe_server.cache.policy import OURS
from coe_server.simulation.simulator import simulate
from coe_server.simulation.timeline import draw_timeline
from tests.cache.machines import machine, trace_of

SVG = "{http://www.w3.org/2000/svg}"


def test_every_expert_has_a_row_and_every_request_a_dot():
    trace = trace_of((0, "a", 3), (1, "b", 4), (1, "a", 2))
    picture = draw_timeline(simulate(machine(), trace, OURS), "a < b & c")
    root = ET.fromstring(picture)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a", "b", "a < b & c"} <= set(words)
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")


def test_bars_say_where_an_expert_was():
    root = ET.fromstring(draw_timeline(simulate(machine(), trace_of((0, "a", 3), (1, "b", 4)), OURS), "t"))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.get("height") == "16" and float(bar.get("width")) > 1]
    moving = [bar for bar in bars if bar.get("opacity")]
    assert (len(moving), len(bars) - len(moving)) == (3, 2)  # a wakes and sleeps, b wakes; both stay for a while
    stayed = [float(bar.get("width")) for bar in bars if not bar.get("opacity")]
    assert abs(stayed[0] / stayed[1] - 3 / 4) < 0.01


def test_with_many_experts_the_most_asked_for_are_drawn():
    trace = trace_of(*[(n, "abc"[n % 3], 1) for n in range(6)])
    run = simulate(machine(3), trace, OURS)
    crowd = type(run)(
        tuple(type(a)(f"e{n}", a.arrived, a.granted, a.finished) for n in range(50) for a in run.answers[: 1 + n % 2]),
        run.moves, 0, 0, 1.0, 1.0,
    )  # fmt: skip
    assert "10 less requested experts are left out" in draw_timeline(crowd, "t")
