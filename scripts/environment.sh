# Sourced by the other scripts. Usage: make_environment [EXTRAS]
# Creates .venv in the repository and installs mt with these extras, such as "[dev,ct2]".
make_environment() {
    local extras="${1:-}"
    local stamp=".venv/.installed$extras"
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "mt needs Python 3.11 or later; set PYTHON to such a Python" >&2; return 1; }
        echo "creating .venv ..."
        "${PYTHON:-python3}" -m venv .venv || { rm -rf .venv; return 1; }
    elif [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" -V)" != "$(.venv/bin/python -V)" ]; then
        echo ".venv has $(.venv/bin/python -V), but PYTHON is $("$PYTHON" -V):" \
            "delete .venv or unset PYTHON" >&2
        return 1
    fi
    if [ ! "$stamp" -nt pyproject.toml ] || [ ! "$stamp" -nt constraints.txt ]; then
        echo "installing mt$extras into .venv (this can take minutes, because PyTorch is large) ..."
        .venv/bin/python -m pip install --quiet --constraint constraints.txt \
            --editable ".$extras" 2> .venv/pip.log || { cat .venv/pip.log >&2; return 1; }
        touch "$stamp"
    fi
}
