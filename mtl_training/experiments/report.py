"""A study's results as Markdown, CSV, JSON and one HTML page."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from mtl_training.experiments.figures import METRICS
from mtl_training.experiments.study import StudySettings

TITLES = {
    'miou': 'mIoU',
    'pixacc': 'pixAcc',
    'abs_err': 'abs m',
    'rel_err': 'rel',
    'mean': 'normals mean °',
    'median': 'median °',
    '11.25': '<11.25°',
    '22.5': '<22.5°',
    '30': '<30°',
    'ap': 'AP',
    'ap50': 'AP50',
    'accuracy': 'accuracy',
}


def write_report(study: StudySettings, results: dict[str, Any], out: Path) -> None:
    """Write results.json, table.md, table.csv and index.html into `out`."""
    (out / 'results.json').write_text(
        json.dumps(results, indent=2, allow_nan=False), encoding='utf-8'
    )
    header, lines = table(results)
    (out / 'table.md').write_text(markdown(study, results), encoding='utf-8')
    with (out / 'table.csv').open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerows([header, *lines])
    page = _environment().get_template('study.html.j2')
    (out / 'index.html').write_text(
        page.render(
            study=study,
            results=results,
            header=header,
            lines=lines,
            titles=TITLES,
            curves=_curves(study, out),
            trade=_quality_against_size(results),
            pictures=_pictures(study, out),
        ),
        encoding='utf-8',
    )


def shown_metrics(results: dict[str, Any]) -> list[str]:
    """Return the figures that at least one row has, in the usual order."""
    return [name for name in METRICS if any(name in row['figures'] for row in results['rows'])]


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the study's table; mean ± deviation over seeds."""
    metrics = shown_metrics(results)
    header = ['model', 'params', 'GMACs', 'torch ms', *(TITLES[name] for name in metrics)]
    gains = any(row['delta_m'] is not None for row in results['rows'])
    if gains:
        header.append('Δm %')
    lines = []
    for row in results['rows']:
        line = [
            row['title'],
            f'{row["parameters"] / 1e6:.2f} M',
            f'{row["gmacs"]:.2f}',
            f'{row["torch_ms"]:.0f}',
            *(_figure(row, name) for name in metrics),
        ]
        if gains:
            line.append('' if row['delta_m'] is None else f'{row["delta_m"]:+.1f}')
        lines.append(line)
    return header, lines


def _figure(row: dict[str, Any], name: str) -> str:
    if name not in row['figures']:
        return ''
    figure = row['figures'][name]
    digits = 2 if name in ('mean', 'median') else 4
    text = f'{figure["mean"]:.{digits}f}'
    if row['seeds'] > 1:
        text += f' ± {figure["std"]:.{digits}f}'
    against = row.get('against', {}).get(name)
    if against and against['is_real']:
        better = (against['difference'] > 0) == METRICS[name][1]
        text += ' ▲' if better else ' ▼'
    return text


def markdown(study: StudySettings, results: dict[str, Any]) -> str:
    """Return the study as Markdown: our table, then the reference study's figures."""
    header, lines = table(results)
    parts = [f'# {study.title}', '', study.description.strip(), '']
    parts += [
        f'Scale `{results["scale"]}`, measured on {results["measured_on"]} '
        f'({results["frames"]} frames), checkpoint chosen on held-out training frames.',
        '',
    ]
    if results['scale'] == 'quick':
        parts += ['**A run through everything with tiny pictures: its figures say nothing.**', '']
    parts += _markdown_table(header, lines)
    if results['compare_to']:
        parts += [
            '',
            f'▲ better, ▼ worse than `{results["compare_to"]}` with the 95 % interval of a '
            'paired bootstrap over frames beyond zero (of the mean over seeds).',
        ]
    metrics = shown_metrics(results)
    last = [
        [row['title'], *(_plain(row['last'], name) for name in metrics)] for row in results['rows']
    ]
    parts += ['', '## Last step instead of the chosen one', '']
    parts += _markdown_table(['model', *(TITLES[name] for name in metrics)], last)
    if any(row['reference'] for row in results['rows']):
        references = [
            [row['title'], *(str(row['reference'].get(name, '')) for name in metrics)]
            for row in results['rows']
        ]
        parts += ['', '## The reference study (its best test epoch, for comparison only)', '']
        parts += _markdown_table(['model', *(TITLES[name] for name in metrics)], references)
    return '\n'.join(parts) + '\n'


def _plain(figures: dict[str, dict[str, float]], name: str) -> str:
    return f'{figures[name]["mean"]:.4f}' if name in figures else ''


def _markdown_table(header: list[str], lines: list[list[str]]) -> list[str]:
    rows = ['| ' + ' | '.join(line) + ' |' for line in (header, *lines)]
    return [rows[0], '|' + '---|' * len(header), *rows[1:]]


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / 'templates')
    return jinja2.Environment(loader=loader, autoescape=True)


def _curves(study: StudySettings, out: Path) -> str:
    """Return the held-out score of every training over its steps, a PNG as data URL."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
    for row in study.rows:
        for seed in study.seeds:
            file = out / row.name / str(seed) / 'last.json'
            if not file.is_file():
                continue
            position = json.loads(file.read_text(encoding='utf-8'))['position']
            points = [(entry['step'], entry['score']) for entry in position['evaluations']]
            axes.plot(*zip(*points, strict=True), marker='.', label=f'{row.title} ({seed})')
    axes.set(xlabel='step', ylabel='held-out score', title='Held-out frames during training')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return _data_url(figure)


def _quality_against_size(results: dict[str, Any]) -> str:
    """Return the first figure against parameters, a PNG as data URL."""
    metrics = shown_metrics(results)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
    name = metrics[0]
    for row in results['rows']:
        if name in row['figures']:
            point = (row['parameters'] / 1e6, row['figures'][name]['mean'])
            axes.scatter(*point)
            axes.annotate(
                row['title'], point, fontsize=7, xytext=(4, 4), textcoords='offset points'
            )
    axes.set(xlabel='parameters, millions', ylabel=TITLES[name], title='Quality against size')
    axes.grid(alpha=0.3)
    return _data_url(figure)


def _data_url(figure: plt.Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    plt.close(figure)
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()


def _pictures(study: StudySettings, out: Path) -> list[dict[str, Any]]:
    """Return title and pictures (data URLs) of every row that has them."""
    found = []
    for row in study.rows:
        files = sorted((out / row.name / str(study.seeds[0])).glob('frame*.png'))
        urls = [
            'data:image/png;base64,' + base64.b64encode(file.read_bytes()).decode()
            for file in files
        ]
        if urls:
            found.append({'title': row.title, 'urls': urls})
    return found
