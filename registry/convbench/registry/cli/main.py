"""The `convbench` command: collects the commands of every room and plugin, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from convbench.registry.cli.streams import discard, standard_streams
from convbench.registry.discovery.plugins import Registry, discover
from convbench.registry.errors import ConvbenchError, PluginError, UnknownName, UsageError

INTERRUPTED = 130
CUT_OFF = 141  # as a program that SIGPIPE ends; not 0, for a gate may have been still to come


class CommandGroup(click.Group):
    """A group in which no plugin can replace another's command, and a typo gets the nearest match."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name or ""
        if name in self.commands:
            raise PluginError(f"the command {name!r} exists already")
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        typed = args and not args[0].startswith("-") and not ctx.resilient_parsing  # and not completed
        if typed and args[0] not in self.commands:
            raise UnknownName("command", args[0], self.commands)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        """Run a command; what it returns is no exit code."""
        try:
            super().invoke(ctx)
        except (BrokenPipeError, SystemExit) as error:  # the reader of a pipe, such as `head`, has had enough
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise  # not what rich makes of a broken pipe
            discard(sys.stdout)
            ctx.exit(CUT_OFF)


def build(registry: Registry) -> click.Group:
    """The command line with everything the plugins of `registry` add to it; each command finds it as `ctx.obj`."""

    @click.group(
        cls=CommandGroup,
        context_settings={"help_option_names": ["-h", "--help"], "obj": registry},
        epilog="Tables and data go to stdout, progress and notes to stderr.",
    )
    @click.version_option(registry.version)
    def convbench() -> None:
        """Convolution, compared: op backends, CNN architectures, and suites that train and time them."""

    for problem in registry.add_commands(convbench):
        click.echo(f"warning: {problem}", err=True)
    return convbench


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; see `convbench.registry.errors` for what each means."""
    with standard_streams():
        code = _exit_code(arguments)
    sys.exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        check_directory()
        code = build(discover())(arguments, prog_name="convbench", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ConvbenchError as error:
        click.echo(f"convbench: {error}", err=True)
        code = error.exit_code
        if error.stuck:
            sys.stdout.flush()
            os._exit(code)
    except OSError as error:  # standard output on a full disk, for one
        where = error.filename or "standard output"
        click.echo(f"convbench: {error.strerror or error}: {where}", err=True)
        code = ConvbenchError.exit_code
    except MemoryError:
        click.echo("convbench: out of memory", err=True)
        code = ConvbenchError.exit_code
    return code or 0


def check_directory() -> None:
    """Refuse to work in a directory that was deleted; raises UsageError."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the working directory does not exist any more; change to another one") from None
