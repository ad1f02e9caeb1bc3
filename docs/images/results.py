"""Draw docs/images/results.svg from the table in docs/results.md: python docs/images/results.py."""

from pathlib import Path

IMAGES = Path(__file__).resolve().parent
METRICS = ("P@1", "P@5", "PSP@1", "PSP@5", "R@10", "R@100")
SYSTEMS = {"prototypes": "#1f5fbf", "one-vs-all classifiers": "#c06a12", "ensemble": "#12796a"}  # rows, colours
STYLE = """<style>
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-size:14px;fill:#1c2733}
.value{font-size:11px;fill:#4a5a6a}
.ground{fill:#fbfcfe;stroke:#c9d3df}
.axis{stroke:#c9d3df}
</style>"""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 320, 30, 270, 60
BAR, GAP = 40, 4


def read_table(page: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each system in `SYSTEMS`, in percent, by the name of the metric."""
    rows = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    header = next(row for row in rows if row[0] == "run")
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)}
    return {name: {metric: float(table[name][metric]) for metric in METRICS} for name in SYSTEMS}


def draw(results: dict[str, dict[str, float]]) -> str:
    """Return the figure: a group of bars for each metric, a bar for each system, from 0 to 100 percent."""
    parts = [f'<rect class="ground" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12"/>']
    for position, (name, colour) in enumerate(SYSTEMS.items()):
        x = LEFT + 10 + position * 220
        parts.append(f'<rect x="{x}" y="20" width="14" height="14" rx="3" fill="{colour}"/>')
        parts.append(f'<text x="{x + 22}" y="32">{name}</text>')
    group_width = (WIDTH - 2 * LEFT) / len(METRICS)
    bars_width = len(SYSTEMS) * BAR + (len(SYSTEMS) - 1) * GAP
    for group, metric in enumerate(METRICS):
        middle = LEFT + (group + 0.5) * group_width
        parts.append(f'<text x="{middle:g}" y="{BOTTOM + 24}" text-anchor="middle">{metric}</text>')
        for position, (name, colour) in enumerate(SYSTEMS.items()):
            value = results[name][metric]
            height = value / 100 * (BOTTOM - TOP)
            x = middle - bars_width / 2 + position * (BAR + GAP)
            area = f'x="{x:g}" y="{BOTTOM - height:.1f}" width="{BAR}" height="{height:.1f}"'
            parts.append(f'<rect {area} rx="3" fill="{colour}"/>')
            label = f'x="{x + BAR / 2:g}" y="{BOTTOM - height - 6:.1f}" text-anchor="middle"'
            parts.append(f'<text class="value" {label}>{value:.1f}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    title = "<title>Test metrics on LF-Debian-18K in percent: prototypes, classifiers, and their ensemble</title>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join([head, title, STYLE, *parts, "</svg>", ""])


if __name__ == "__main__":
    (IMAGES / "results.svg").write_text(draw(read_table(IMAGES.parent / "results.md")), encoding="utf-8")
