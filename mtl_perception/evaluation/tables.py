"""Figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mtl_perception.evaluation.compare import Comparison

_HEADINGS = {
    'segmentation': {'miou': 'mIoU', 'pixacc': 'pixel accuracy'},
    'depth': {
        'abs_err': 'abs. error, m', 'rel_err': 'rel. error', 'rmse': 'RMSE, m', 'delta1': 'δ<1.25',
    },
    'normals': {
        'mean': 'mean, °', 'median': 'median, °',
        '11.25': '<11.25°', '22.5': '<22.5°', '30': '<30°',
    },
    'detection': {
        'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75', 'precision': 'precision', 'recall': 'recall',
    },
    'classification': {'accuracy': 'accuracy'},
}  # fmt: skip
_COLOURS = {'better': 'green', 'worse': 'red', 'unclear': 'dim'}


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure for people; '–' where there is none."""
    return '–' if value is None else f'{value:.{digits}g}'


def results_table(results: Mapping[str, Any]) -> Group:
    """Return the main figures and everything that was left out."""
    table = Table(title=_title(results), title_justify='left', box=SIMPLE_HEAD)
    table.add_column('task', no_wrap=True)
    table.add_column('figures')
    for task, names in _HEADINGS.items():
        figures = results.get(task)
        if not figures:
            continue
        parts = [f'{text} [bold]{number(figures.get(key))}[/]' for key, text in names.items()]
        if task == 'normals':
            parts.append(f'[dim]({figures["source"]})[/]')
        if task == 'classification':
            parts += [
                f'{name} [bold]{number(report["accuracy"])}[/]'
                for name, report in figures['attributes'].items()
            ]
        table.add_row(task, '   '.join(parts))
    aligned = results.get('scale_aligned_depth', {})
    if aligned.get('rel_err') is not None:
        scale = number(aligned['scale']['p50'], 3)
        table.add_row(
            'depth, scaled',
            f'rel. error [bold]{number(aligned["rel_err"])}[/]   δ<1.25 '
            f'[bold]{number(aligned["delta1"])}[/]   median factor {scale}',
        )
    calibration = results.get('calibration', {})
    if calibration.get('ece') is not None:
        table.add_row('calibration', f'ECE [bold]{number(calibration["ece"])}[/]')
    table.add_row('without truth', _without_truth(results.get('without_truth', {})))
    live = results.get('live')
    if live:
        latency = ' / '.join(number(live['latency_ms'][p], 3) for p in ('p50', 'p95', 'p99'))
        table.add_row(
            'live',
            f'[bold]{live["frames_out"]}[/] of {live["frames_in"]} frames, {live["dropped"]} '
            f'dropped   latency [bold]{latency}[/] ms (p50 / p95 / p99)',
        )
    notes = [Text(f'• {note}', style='yellow') for note in left_out(results)]
    return Group(table, *notes)


def _title(results: Mapping[str, Any]) -> str:
    engine, times = results['engine'], results['times']
    return (
        f'{results["bundle"]["name"]} on {results["frames"]} frames, {engine["name"]} '
        f'{engine["precision"]}, {times["frames_per_second"]:.1f} frames/s'
    )


def _without_truth(figures: Mapping[str, Any]) -> str:
    parts = []
    if figures.get('unsure') is not None:
        parts.append(f'unsure pixels [bold]{number(figures["unsure"], 3)}[/]')
    agreement = figures.get('normals_agreement', {})
    if agreement.get('median') is not None:
        parts.append(f'normals vs. depth [bold]{number(agreement["median"], 3)}°[/] (median)')
    for method, values in figures.get('temporal', {}).items():
        parts.append(
            f'next frame, {method}: same label [bold]{number(values["same_label"], 3)}[/], '
            f'depth change [bold]{number(values["depth_change"], 3)}[/]'
        )
    return '   '.join(parts)


def left_out(results: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that could not be used."""
    several = len(results.get('recordings', ())) > 1
    lines = []
    for recording in results.get('recordings', ()):
        prefix = f'{recording["name"]}: ' if several else ''
        lines += [f'{prefix}{count} x {what}' for what, count in recording['skipped'].items()]
        lines += [f'{prefix}{remark}' for remark in recording['remarks']]
    lines += [f'failed: {failure["reason"]}' for failure in results.get('failed', ())]
    return lines


def comparison_table(comparison: Comparison, names: tuple[str, str]) -> Group:
    """Return the differences, coloured where the interval does not hold zero."""
    title = (
        f'A {names[0]}, B {names[1]}: {comparison.paired} frames in both, drawn in '
        f'{comparison.blocks} blocks of up to {comparison.block}'
    )
    table = Table(
        title=title,
        title_justify='left',
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # for 80 columns
    )
    for heading in ('figure', 'A', 'B', 'B - A', '95 % interval', ''):
        justify = 'left' if heading in ('figure', '') else 'right'
        table.add_column(heading, justify=justify, no_wrap=True)
    for d in comparison.differences:
        interval = '–' if d.low is None else f'{d.low:+.4f} … {d.high:+.4f}'
        table.add_row(
            d.name,
            number(d.first),
            number(d.second),
            f'{d.change:+.4f}',
            interval,
            d.verdict,
            style=_COLOURS[d.verdict],
        )
    notes = [Text(f'• {remark}', style='yellow') for remark in comparison.remarks]
    return Group(table, *notes)


def show(*parts: Any, to_stderr: bool = False) -> None:
    """Print tables; to stderr where stdout carries JSON."""
    Console(stderr=to_stderr, highlight=False).print(*parts)


def failures(conditions: Sequence[str]) -> Text:
    """Return the line that says which conditions hold."""
    return Text(f'failed: {"; ".join(conditions)}', style='bold red')
