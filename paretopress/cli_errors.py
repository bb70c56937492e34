"""Errors and exit codes of the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import typer
from rich.console import Console
from rich.text import Text

from paretopress.errors import ClientError, JobFailed, ServerUnreachable
from paretopress.problems import ApiProblem


class ExitCode(IntEnum):
    """What a command's exit status says."""

    DONE = 0
    """It did what was asked."""
    REFUSED = 1
    """The server refused, or something on this side went wrong; stderr says why."""
    USAGE = 2
    """The command line itself is wrong."""
    INFEASIBLE = 3
    """The job ended and no point met every bound; the nearest ones are printed."""
    JOB_ENDED = 4
    """The job failed or was cancelled."""
    UNREACHABLE = 5
    """No server answered."""
    INTERRUPTED = 130
    """Ctrl-C; a watched job goes on."""


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 refused or failed, stderr says why; 2 wrong usage; 3 the job found no "
    "point within all bounds; 4 the job failed or was cancelled; 5 no server answered; 130 "
    "interrupted (a watched job goes on)."
)

console = Console()
error_console = Console(stderr=True)


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn expected errors into a sentence on stderr and an exit code."""
    try:
        yield
    except ApiProblem as problem:
        show_problem(problem)
        raise typer.Exit(ExitCode.REFUSED) from problem
    except ServerUnreachable as error:
        _show(str(error))
        raise typer.Exit(ExitCode.UNREACHABLE) from error
    except JobFailed as error:
        _show(str(error))
        raise typer.Exit(ExitCode.JOB_ENDED) from error
    except (ClientError, LookupError, OSError) as error:
        _show(str(error.args[0] if isinstance(error, LookupError) and error.args else error))
        raise typer.Exit(ExitCode.REFUSED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def show_problem(problem: ApiProblem) -> None:
    """Print a problem document: its sentence, then each field with what is wrong there."""
    _show(problem.sentence())
    for item in problem.errors:
        error_console.print(Text(f"  {item.pointer or '(body)'}: {item.message}"), soft_wrap=True)
    request_id = problem.document.get("request_id")
    if problem.status >= 500 and request_id:
        error_console.print(Text(f"  request {request_id}"), soft_wrap=True)


def _show(sentence: str) -> None:
    text = Text("Error: ", style="bold red")
    text.append(sentence, style="default")
    error_console.print(text, soft_wrap=True)
