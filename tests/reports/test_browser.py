"""The page in a browser: plots and tables are seen, and nothing overflows a phone."""

import pytest

from aira.reports.page import page
from aira.reports.runs import find_runs
from tests.browser import browser
from tests.reports.test_page import PAIRS


@pytest.mark.parametrize(
    "width, scheme", [(390, "dark"), *(pytest.param(1280, s, marks=pytest.mark.slow) for s in ("light", "dark"))]
)
def test_in_a_browser(make, tmp_path, width, scheme):
    """Catches plots without a size, colours that cannot be told from the paper, and a page wider than the window."""
    for i in range(4):
        trial = ["method=dpo", f"optimizer.lr=1e-{i + 2}"]
        answers = [(3, "What is the capital of France?", "Paris, " * 60)]
        make(str(i), *trial, loss=1 + i / 10, trial=trial, answers=answers, scores=PAIRS)
    (tmp_path / "report.html").write_text(page(find_runs(tmp_path / "runs"), "A sweep"), encoding="utf-8")
    with browser() as chromium:
        view = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        failures = []
        view.on("pageerror", lambda error: failures.append(error))
        view.on("requestfailed", lambda request: failures.append(request.url))
        view.goto(f"file://{tmp_path}/report.html")
        view.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        plots = [plot.bounding_box() for plot in view.locator("svg").all()]
        assert len(plots) > 10 and all(plot["width"] > 200 and plot["height"] > 100 for plot in plots)
        tables = view.locator("table").all()
        assert len(tables) > 5 and all(table.is_visible() for table in tables)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = (
            view.evaluate(f"getComputedStyle(document.body).{one}").removeprefix("rgb(").rstrip(")").split(",")
            for one in ("color", "backgroundColor")
        )
        brightness = [sum(map(int, colour[:3])) / 3 for colour in (ink, paper)]
        assert abs(brightness[0] - brightness[1]) > 128 and (brightness[1] > 128) == (scheme == "light")
        assert not failures
