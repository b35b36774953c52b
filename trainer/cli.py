"""The command `trainer`: a verb, then words.

    trainer train experiment=quickstart
    trainer train -m optim.lr=1e-4,3e-4 seed=1,2
    trainer --help

Verbs live in `trainer/verbs/`, one file each, and are imported when they are called.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from trainer import verbs


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code.

    0 done, 1 an error that was explained, 2 words that are no command, 75 stopped by the stop file, 78 halted or refused by a rank,
    129, 130 or 143 stopped by a signal and saved (130 also: interrupted before the launch), 137 killed, 141 nobody reads the output.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    names = sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(names))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("shardloom"))
        return 0
    verb, rest = words[0], words[1:]
    if verb not in names:
        import difflib

        close = difflib.get_close_matches(verb, names, n=1)
        hint = f"; did you mean `trainer {close[0]}`?" if close else ""
        print(f"trainer: no verb {verb!r}; verbs: {', '.join(names)}{hint}", file=sys.stderr)
        return 2
    from trainer.choices import ConfigError

    try:
        return int(importlib.import_module(f"trainer.verbs.{verb}").run(rest))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        # A full disk, a folder that is not ours, a store that is not reached: the machine's matter, and no mistake of this program.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def overview(names: list[str]) -> str:
    """What `trainer --help` prints; the one-line meanings come from the verbs' own files, read without importing them."""
    lines = ["Train BERT- and GPT-family models: the same configuration from a laptop to a cluster.", "", "usage: trainer VERB [words]", ""]
    for name in names:
        lines.append(f"  {name:<10} {verbs.summary(name)}")
    lines += [
        "",
        "start here:  trainer train experiment=quickstart",
        "options:     trainer train --help      the whole configuration:  trainer train --cfg job experiment=quickstart",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
