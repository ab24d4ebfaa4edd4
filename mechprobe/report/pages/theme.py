"""The colours of every page and of the explorer, light and dark."""

LIGHT = {
    "ink": "#222", "soft": "#5f6368", "line": "#dfe1e5", "paper": "#fff", "panel": "#f7f8f9", "blue": "#0072b2", "mark": "#e8f2f9",
    "faint": "#e3e5e8", "hot": "0 114 178", "cold": "213 94 0", "warn": "#8a3b00", "warnbg": "#fff4e5", "warnline": "#d55e00",
    "good": "#00684a", "shade": "rgb(0 0 0 / .16)",
    "chart-ink": "#222222", "chart-grey": "#767676", "chart-light": "#d5d5d5", "chart-shade": "#f1f1f1", "chart-paper": "#ffffff",
    "chart-grid": "#e6e6e6", "chart-base": "#5a5a5a", "chart-blue": "#0072b2", "chart-orange": "#c77f00", "chart-green": "#008763",
    "chart-purple": "#b65c8d", "chart-sky": "#2f8fc7", "chart-red": "#c85400", "chart-yellow": "#9a8b00",
}  # fmt: skip
DARK = {
    "ink": "#e4e6ea", "soft": "#a3a9b2", "line": "#34383f", "paper": "#15171b", "panel": "#1d2025", "blue": "#6cbcf0", "mark": "#1c3346",
    "faint": "#2b2f35", "hot": "64 160 224", "cold": "240 128 60", "warn": "#ffc48f", "warnbg": "#33220f", "warnline": "#f0803c",
    "good": "#5fd0a5", "shade": "rgb(255 255 255 / .2)",
    "chart-ink": "#e4e6ea", "chart-grey": "#a0a6ae", "chart-light": "#3a3f47", "chart-shade": "#22262c", "chart-paper": "#15171b",
    "chart-grid": "#2b2f35", "chart-base": "#b4bac2", "chart-blue": "#58aee6", "chart-orange": "#e69f00", "chart-green": "#2dbf92",
    "chart-purple": "#d791b5", "chart-sky": "#8ecdf2", "chart-red": "#f0803c", "chart-yellow": "#e0d04a",
}  # fmt: skip


def theme_style() -> str:
    """The colours as CSS variables: those of the system, or those that the reader chose."""
    fonts = '--mono: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;'
    light, dark = _variables(LIGHT, "light"), _variables(DARK, "dark")
    return (
        f":root {{ {fonts} {light} }}\n"
        f'@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}\n'
        f'@media screen {{ :root[data-theme="dark"] {{ {dark} }} }}\n'
    )


def _variables(colors: dict[str, str], scheme: str) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items()) + f" color-scheme: {scheme};"
