# begin and commit: the frame around every step. rules/common.smk puts this file before each shell block.
#
#   begin WANTED LOG    holds the artifact, checks what it is made from, sends all output into LOG.
#                       Sets OUT (where the artifact is to be made) and STAGE (the directory that OUT is in).
#   commit              checks and hashes what was made, renames it into place, writes its recipe last.
#
#   script NAME ARGS    runs a program of scripts/ that makes what is committed: its code is part of the recipe.
#   check NAME ARGS     runs one that only judges or describes what was made (its notes.json): it decides no bytes.
#   fetch NAME ARGS     runs one that brings what is pinned by its sha256: how it comes decides no bytes.
#   again               in the body of an `until` loop: once more where the status was 75, 20 times at most.
#
# A step that ends before `commit` leaves nothing behind but its log.

begin() {
    local hold answer status
    if [ $# != 2 ]; then # nothing is wanted: lib/planning/handoff.py, 6
        echo "FAILED  this step was not planned: the config has changed since, or profiles/default is" \
            "not in use. Run the same command again." >&2
        exit 1
    fi
    exec 8>&2
    hold=$("$QM_PYTHON" -I "$QM_SCRIPTS/step.py" hold "$1")
    while true; do
        exec 9>>"$hold"
        status=0
        answer=$("$QM_PYTHON" -I "$QM_SCRIPTS/step.py" begin "$1") || status=$?
        [ $status = 75 ] || break # the file was removed by its last holder: take the new one
        mkdir -p "$(dirname "$hold")"
    done
    [ $status = 0 ] || exit $status
    eval "$answer" # OUT=… STAGE=…, or exit 0 where another run has just built it
    export OUT STAGE
    QM_WANTED=$1 QM_LOG=$2
    trap _ended EXIT
    mkdir -p "$(dirname "$2")"
    exec >"$2" 2>&1
}

commit() {
    "$QM_PYTHON" -I "$QM_SCRIPTS/step.py" commit "$QM_WANTED" "$SECONDS" 2>&8
    QM_WANTED=
}

script() {
    "$QM_PYTHON" "$QM_SCRIPTS/$1" "${@:2}"
}

check() {
    script "$@"
}

fetch() {
    script "$@"
}

again() {
    local status=$?
    TRIES=$((${TRIES:-1} + 1))
    [ $status = 75 ] && [ $TRIES -le 20 ] || exit $status
}

_ended() {
    local status=$?
    [ -n "$QM_WANTED" ] || exit $status
    rm -rf "$(dirname "$STAGE")" # the file in it is still held
    {
        printf 'FAILED  %s, after %s s. The end of %s:\n' "$OUT_NAME" "$SECONDS" "$QM_LOG"
        tail -n 15 "$QM_LOG" | sed 's/^/    /'
    } >&8
    exit $status
}
