"""The `paretopress` command."""

from __future__ import annotations

import typer

from paretopress import cli_devices, cli_doctor, cli_jobs, cli_register, cli_serve, demo
from paretopress.cli_errors import EXIT_CODES_HELP

app = typer.Typer(
    name="paretopress",
    help="Post a trained network and its hardware limits; pull Pareto-optimal compressed "
    "checkpoints.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(cli_serve.serve)
app.command()(demo.demo)
app.command()(cli_register.add_model)
app.command()(cli_register.add_dataset)
app.command()(cli_jobs.submit)
app.command()(cli_jobs.watch)
app.command()(cli_jobs.front)
app.command()(cli_jobs.pull)
app.command()(cli_jobs.cancel)
app.command()(cli_jobs.jobs)
app.command()(cli_doctor.doctor)
app.add_typer(cli_devices.app, name="device")
