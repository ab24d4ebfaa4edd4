"""``mechprobe doctor``: checks of the installation, the device and the lab."""

import typer

from mechprobe.cli import options


def doctor(as_json: options.Json = False) -> None:
    """Check the installation; exit code 1 when something that mechprobe needs would fail."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.doctor import checks

    rows = checks()
    if as_json:
        say_json([row.__dict__ for row in rows])
    else:
        for row in rows:
            say(f"{row.state:<5} {row.name:<22} {row.text}")
    if any(row.state == "fail" for row in rows):
        raise typer.Exit(1)
