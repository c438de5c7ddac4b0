"""`mt prepare`: tokenizer and token cache of a configuration, without training."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `mt prepare`."""
    app.command()(prepare)


def prepare(
    config: Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Such as tokenizer.vocab_size=4000.", show_default=False),
    ] = None,
) -> None:
    """Read and check the training text, train the tokenizer, fill the token cache. `mt train` does this by itself."""
    from mt.config import load_config

    loaded = load_config(config, overrides or ())
    from mt.cli.output import tell
    from mt.data.prepare import prepare as run
    from mt.log import say, setup_logging
    from mt.runs.resolve import with_initial_model

    setup_logging()
    loaded, taken_over = with_initial_model(loaded)
    for line in taken_over:
        say(line)
    prepared = run(loaded)
    tell(str(prepared.train.folder))
