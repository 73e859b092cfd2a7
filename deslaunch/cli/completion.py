"""``completion``: scripts for shells."""

from __future__ import annotations

import click

from deslaunch.cli.command import command
from deslaunch.cli.given import console_of


@command(
    "completion",
    examples=(
        "  deslaunch completion bash > ~/.local/share/bash-completion/completions/deslaunch\n"
        "  deslaunch completion zsh > ~/.zfunc/_deslaunch    # with ~/.zfunc in fpath\n"
        "  deslaunch completion fish > ~/.config/fish/completions/deslaunch.fish"
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script with which SHELL completes commands, options, choices and files.

    Write it where the shell looks for such scripts, as below, and open a new shell. It asks
    deslaunch itself, so it need not be made anew after an update; bash must be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415  # not for --help

    kind = get_completion_class(shell)
    assert kind is not None
    command_line = click.get_current_context().find_root().command
    made = kind(command_line, {}, "deslaunch", "_DESLAUNCH_COMPLETE")
    console_of({}).data(made.source().strip())
    return 0
