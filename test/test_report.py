"""The report in a real browser: it renders, its sliders move, it needs nothing else."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bag_writing import bag_sink, write_bag

from mtl_perception.bundle import ModelBundle
from mtl_perception.evaluation.charts import Axis, lines
from mtl_perception.evaluation.command import Outputs, compare_files, evaluate
from mtl_perception.evaluation.report import write_report
from mtl_perception.evaluation.run import Settings

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@dataclass
class Pages:
    """Written once for all tests of this file."""

    report: Path
    bare: Path
    comparison: Path
    results: dict[str, Any]


@pytest.fixture(scope='module')
def pages(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp('pages')
    settings = Settings(str(tiny_bundle.path), engine='onnxruntime', threads=1)
    bag = write_bag(folder / 'bag', frames=8)
    with bag_sink(folder / 'bare') as sink:
        sink.frame(0, truth=False)
    for name in ('bag', 'bare'):
        outputs = Outputs(str(folder / f'{name}.json'), folder / f'{name}.html', quiet=True)
        evaluate(folder / name, settings, outputs)
    files = [folder / 'bag.json'] * 2
    compare_files(files, Outputs(report=folder / 'comparison.html', quiet=True))
    results = json.loads((folder / 'bag.json').read_text())
    assert bag.is_dir()
    return Pages(folder / 'bag.html', folder / 'bare.html', folder / 'comparison.html', results)


@pytest.fixture(scope='module')
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f'none of {", ".join(BROWSERS)} is installed')
    return found


def open_page(browser: str, page: Path, script: str) -> tuple[str, str]:
    """Return the page's elements after `script` has run, and what it said on the console."""
    copy = page.with_name(f'tried-{page.name}')
    copy.write_text(page.read_text().replace('</body>', f'<script>{script}</script></body>'))
    command = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
        f'--user-data-dir={page.with_name("profile")}', '--virtual-time-budget=3000',
        '--dump-dom', copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return done.stdout, '\n'.join(console)


# A person at the report: moves a slider, chooses a view, downloads figures, takes out the phone.
USE = """
  const found = {};
  const item = document.querySelector('.item');
  const slider = item.querySelector('input');
  slider.value = 20;
  slider.dispatchEvent(new Event('input'));
  const shown = () => [...item.querySelectorAll('.over')].filter((p) => !p.hidden);
  found.clip = getComputedStyle(shown()[0]).clipPath;
  item.querySelector('button[data-view="depth"]').click();
  found.views = shown().map((p) => p.dataset.view);
  found.loaded = [...document.images].every((p) => p.naturalWidth > 0);
  found.drawn = document.querySelectorAll('figure svg path.line').length;
  URL.createObjectURL = (blob) => {
    blob.text().then((text) => { found.csv = text; });
    return 'data:,';
  };
  document.querySelector('#iou button.csv').click();
  const phone = document.createElement('iframe');
  phone.style.width = '390px';
  phone.srcdoc = document.documentElement.outerHTML.split('<scr' + 'ipt>')[0];
  phone.onload = () => {
    found.width = phone.contentDocument.documentElement.scrollWidth;
    phone.remove();
    const note = document.createElement('pre');
    note.id = 'found';
    note.textContent = JSON.stringify(found);
    document.body.append(note);
  };
  document.body.append(phone);
"""


@dataclass
class Used:
    """What the browser found, and what it said on the console."""

    found: dict[str, Any]
    console: str


@pytest.fixture(scope='module')
def used(pages: Pages, browser: str) -> Used:
    elements, console = open_page(browser, pages.report, USE)
    note = re.search(r'<pre id="found">(.*?)</pre>', elements, re.DOTALL)
    assert note, console
    return Used(json.loads(html.unescape(note[1])), console)


def test_the_report_renders_without_a_word_on_the_console(used: Used) -> None:
    assert used.console == ''
    assert used.found['loaded']
    assert used.found['drawn'] >= 5


def test_moving_a_slider_moves_the_line(used: Used) -> None:
    assert re.match(r'inset\(0px? 0px? 0px? 20%\)', used.found['clip'])


def test_buttons_choose_what_is_shown(used: Used) -> None:
    assert used.found['views'] == ['depth']


def test_csv_buttons_download_the_rows_of_their_figure(pages: Pages, used: Used) -> None:
    heading, *rows = used.found['csv'].split()
    assert heading == 'class,iou'
    iou = pages.results['segmentation']['iou']
    assert [row.split(',')[0] for row in rows] == list(iou)
    assert float(rows[1].split(',')[1]) == pytest.approx(iou['books'])


def test_it_fits_a_phone(used: Used) -> None:
    assert used.found['width'] <= 390


@pytest.mark.parametrize('name', ['bare', 'comparison'])
def test_other_pages_say_nothing_but_what_they_are_made_to_say(
    pages: Pages, browser: str, name: str
) -> None:
    _, console = open_page(browser, getattr(pages, name), 'console.error("heard");')
    assert len(console.splitlines()) == 1
    assert 'heard' in console


@pytest.mark.parametrize('name', ['report', 'bare', 'comparison'])
def test_pages_name_no_other_host_or_file(pages: Pages, name: str) -> None:
    text = getattr(pages, name).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', text)
    assert not re.findall(r'https?://|@import|url\(', text)


def test_light_and_dark_are_both_there(pages: Pages) -> None:
    assert 'prefers-color-scheme: dark' in pages.report.read_text()


def test_names_from_recordings_cannot_become_elements(pages: Pages, tmp_path: Path) -> None:
    name = '<script>alert(1)</script>'
    results = json.loads(json.dumps(pages.results))
    results['recordings'][0]['name'] = name
    results['recordings'][0]['remarks'] = [name]
    results['confusion']['classes'][0] = results['confusion']['columns'][0] = name
    results['by_class'] = {name: results['by_class']['bed']}
    write_report(results, tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert '<script>alert' not in text
    assert '&lt;script&gt;alert' in text


def test_what_a_live_replay_saw_is_shown(pages: Pages, tmp_path: Path) -> None:
    latency = {'p50': 31.5, 'p95': 40.25, 'p99': 55.0}
    live = {
        'frames_in': 90, 'frames_out': 83, 'dropped': 7, 'fps': 27.5, 'latency_ms': latency,
    }  # fmt: skip
    write_report({**pages.results, 'live': live}, tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    for value in ('90 / 83', '<dd>7</dd>', '31.5 / 40.2 / 55'):
        assert value in text


def test_long_recordings_become_lines_of_bounded_length(pages: Pages, tmp_path: Path) -> None:
    frames = ({'depth': {'rel_err': 0.1}} for _ in range(100_000))
    write_report({**pages.results, 'frames': 100_000}, tmp_path / 'page.html', frames=frames)
    text = (tmp_path / 'page.html').read_text()
    assert len(text) < 300_000
    assert 'mean of 250 frames' in text


def test_axes_have_round_ticks_within_their_range() -> None:
    for low, high in ((0, 1), (0, 0.037), (-3, 1234)):
        ticks = Axis('x', low, high).ticks()
        assert 3 <= len(ticks) <= 7
        assert min(ticks) >= low - 1e-9
        assert max(ticks) <= high + 1e-9


def test_missing_values_interrupt_a_line() -> None:
    svg = lines([0, 1, 2, 3], [('a', [1.0, None, 2.0, 3.0])], 'x', 'y')
    assert len(re.findall('M', re.search(r' d="([^"]*)"', svg)[1])) == 2
