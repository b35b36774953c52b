"""`trainer completion bash`: a script by which bash, zsh or fish completes verbs, groups, choices, options, values and runs.

eval "$(trainer completion bash)"                                        in ~/.bashrc
trainer completion zsh > ~/.zfunc/_trainer                               where fpath has ~/.zfunc
trainer completion fish > ~/.config/fish/completions/trainer.fish
"""

from __future__ import annotations

from trainer.choices import ConfigError

SUMMARY = "print a script for bash, zsh or fish that completes what is typed"

# Readline cuts a word at = and :, and replaces only what follows the last of them.
_BASH = """\
_trainer() {
    local line=${COMP_LINE:0:COMP_POINT} word
    local typed=${line##*[[:space:]]}
    local kept=${typed%"${typed##*[=:@]}"}
    COMPREPLY=()
    while IFS=$'\\t' read -r word _; do
        COMPREPLY+=("${word#"$kept"}")
    done < <("$1" completion "line=$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _trainer trainer
"""

_ZSH = """\
#compdef trainer
_trainer() {
    local -a open closed open_text closed_text
    local word meaning
    "$words[1]" completion "line=${(j: :)words[1,CURRENT]}" 2>/dev/null | while IFS=$'\\t' read -r word meaning; do
        if [[ $word == *[=.] ]]; then open+=("$word"); open_text+=("$word  -- $meaning")
        else closed+=("$word"); closed_text+=("$word  -- $meaning"); fi
    done
    if (( $#open + $#closed )); then
        compadd -l -S '' -d open_text -a open
        compadd -l -d closed_text -a closed
    else
        compset -P '*='
        _files
    fi
}
compdef _trainer trainer
"""

_FISH = """\
function __trainer_offers
    set -l words (commandline -opc)
    $words[1] completion "line="(string join ' ' -- $words (commandline -ct)) 2>/dev/null
end
complete -c trainer -e
complete -c trainer -f -n 'test (count (__trainer_offers)) -gt 0' -a '(__trainer_offers)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
WORDS = tuple(_SCRIPTS)


def run(words: list[str]) -> int:
    """Print the script, or, for the script itself, what can be typed next. Raises ConfigError for another shell."""
    if len(words) == 1 and words[0].startswith("line="):
        from trainer.completion import offers

        for word, meaning in offers(words[0].removeprefix("line=")):
            print(f"{word}\t{meaning}")
        return 0
    if any(word in ("-h", "--help") for word in words):
        print(__doc__.strip() if __doc__ else "")
        return 0
    if len(words) != 1 or words[0] not in _SCRIPTS:
        raise ConfigError(f"completion: {' '.join(words) or 'no shell'} given; allowed: {', '.join(_SCRIPTS)}")
    print(_SCRIPTS[words[0]], end="")
    return 0
