"""Turns what `make demo` prints into a picture of a terminal, in which each line comes when it came.

    make demo | python3 tests/demo/picture.py > tests/demo/demo.svg

Where nothing moves, all lines are there. Times are those that the lines tell of themselves.
"""

import html
import re
import sys

COLUMNS = 110
ROWS = 30
# How fast it is shown: nobody reads it as fast as it happens.
SPEED = 0.4
LINE_HEIGHT = 18
CHARACTER = 8.1
MARGIN = 16
COMMAND = "$ make demo"
# What a line speaks of, and its colour; the first that fits counts.
COLOURS = [
    (r"complete: success|as it should", "#7ec699"),
    (r"complete: (cancelled|failed)|Refused|CommandError|stderr \|", "#f2a97e"),
    (r"stdout \|", "#d6deeb"),
    (r"^\$", "#ffffff"),
    (r"offered|started|told", "#82aaff"),
]
PLAIN = "#8a93a6"
# A line of the demo: seconds since it began, the execution, what happened.
EVENT = re.compile(r"\s*(\d+\.\d\d) s  (.*)")


def shown(line):
    """Paths and ports of the machine are nobody's business and differ each time."""
    line = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:8000", line)
    line = re.sub(r"the project in \S+", "the project in /srv/app", line)
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"


def lines_of(printed):
    """Each line with the second in which it came, the command first."""
    lines, second = [(0.0, COMMAND)], 0.3
    for line in printed.splitlines():
        event = EVENT.match(line)
        second = max(second, float(event.group(1)) if event else 0)
        if lines[1:] or line.startswith("the service is at"):
            lines.append((second, shown(line)))
    return [(second / SPEED, line) for second, line in lines]


def scrolled(lines):
    """The window follows the last line."""
    steps = {0.0: 0}
    for number, (second, _) in enumerate(lines):
        steps[second] = max(0, number + 1 - ROWS) * LINE_HEIGHT
    end = max(steps)
    values = ";".join("0 %d" % -offset for offset in steps.values())
    times = ";".join("%.4f" % (second / end) for second in steps)
    return steps[end], (
        f'<animateTransform attributeName="transform" type="translate" calcMode="discrete" dur="{end:.2f}s" '
        f'values="{values}" keyTimes="{times}" fill="freeze"/>'
    )


def main():
    lines = lines_of(sys.stdin.read())
    width = MARGIN * 2 + COLUMNS * CHARACTER
    height = MARGIN * 2 + ROWS * LINE_HEIGHT
    offset, scrolling = scrolled(lines)
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} '
        f'{height}" font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="13">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#0f1626"/>\n'
        f'<svg y="{MARGIN}" height="{ROWS * LINE_HEIGHT}"><g transform="translate(0 {-offset})">{scrolling}'
    )
    for number, (second, line) in enumerate(lines):
        colour = next((colour for pattern, colour in COLOURS if re.search(pattern, line)), PLAIN)
        y = LINE_HEIGHT * (number + 0.75)
        until = f'<set attributeName="visibility" to="hidden" begin="0s" dur="{second:.2f}s"/>' if second else ""
        text = html.escape(line).replace(" ", "\u00a0")
        print(f'<text x="{MARGIN}" y="{y:.1f}" fill="{colour}">{text}{until}</text>')
    print("</g></svg></svg>")


main()
