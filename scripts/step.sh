# begin and commit: the frame around every step. rules/common.smk puts this file before each shell
# block.
#
#   begin WANTED LOG    holds the artifact, checks its inputs, and sends all output into LOG. Sets
#                       OUT (where the artifact is to be made) and STAGE (the directory of OUT).
#   commit              checks and hashes the artifact, renames it into place, and writes its record
#                       last.
#
#   script NAME ARGS    runs a program of scripts/ that makes the artifact. Its code is part of the
#                       recipe.
#   check NAME ARGS     runs a program that only judges or describes the artifact (notes.json). It
#                       decides no bytes, so its code is not part of the recipe. The artifact must
#                       be finished: it is hashed meanwhile.
#   beside NAME ARGS    runs a program as `check` does, of an input. Where the step has a GPU, it
#                       runs on processors, beside what follows; commit waits for it.
#   fetch NAME ARGS     runs a program that brings a file whose sha256 is in the recipe. Its code is
#                       not part of the recipe either.
#
#   same [ARTIFACT]     if there is another artifact of the same recipe, takes its bytes (hard links) and ends
#                       the step.
#
#   inside ENV [EXT]    lets the commands that follow run programs by the Python of a tool's
#                       environment ENV, with the extension that lies in the directory EXT.
#
# A step that ends before `commit` leaves only its log behind.

begin() {
    local artifact here answer status=75
    if [ $# != 2 ]; then # nothing is wanted: lib/planning/handoff.py, 6
        echo "FAILED  this step was not planned: the config has changed since," \
            "or profiles/default is not in use. Run the same command again." >&2
        exit 1
    fi
    # The artifact, by handoff.path_of; where it is built and what is held, by layout.hold_file.
    artifact=${1#.snakemake/quantmill/wanted/} artifact=${artifact%/*/*}
    here=${artifact%/*}/.${artifact##*/}.building
    QM_HERE=$here QM_WANTED=
    trap _ended EXIT
    exec 8>&2
    while [ $status = 75 ]; do # the file was removed by its last holder: take the new one
        mkdir -p "$here"
        exec 9>>"$here/hold"
        status=0
        answer=$("$QM_PYTHON" -I "$QM_SCRIPTS/step.py" begin "$1") || status=$?
    done
    [ $status = 0 ] || exit $status
    eval "$answer" # OUT=… STAGE=…, or exit 0 where another run has just built it
    # llama.cpp's converter trusts the code that some models name (trust_remote_code), and it may be
    # another repository's. Before it runs, transformers has to copy it here, which nobody can.
    export HF_MODULES_CACHE='/dev/null/no code that a model brings is run'
    export OUT STAGE
    QM_WANTED=$1 QM_LOG=$2
    mkdir -p "$(dirname "$2")"
    exec >"$2" 2>&1
}

commit() {
    local status=0
    if [ -n "${QM_BESIDE:-}" ]; then
        wait "$QM_BESIDE" || status=$?
        cat "$STAGE/.beside"
        [ $status = 0 ] || exit $status
    fi
    [ -z "${QM_MEASURING:-}" ] || wait "$QM_MEASURING" || true # then commit hashes it itself
    times >"$STAGE/.times"
    "$QM_PYTHON" -I "$QM_SCRIPTS/step.py" commit "$QM_WANTED" 2>&8
    QM_WANTED=
}

script() {
    # llama.cpp's tools do not wait for what their loggers still have to write: a line may lack its end.
    [ -z "$(tail -c 1 "${QM_LOG:-/dev/null}")" ] || echo >&2
    "$QM_PYTHON" "$QM_SCRIPTS/$1" "${@:2}"
}

check() {
    # What is checked is finished: if it is large, it is hashed meanwhile.
    if [ -z "${QM_MEASURING:-}" ] && [ -n "$(find "$OUT" -type f -size +65536k 2>&-)" ]; then
        "$QM_PYTHON" -I "$QM_SCRIPTS/step.py" measure "$QM_WANTED" &
        QM_MEASURING=$!
    fi
    script "$@"
}

same() {
    [ $# -gt 0 ] || return 0
    "$QM_PYTHON" -I "$QM_SCRIPTS/step.py" same "$QM_WANTED" "$1" || return 0
    commit
    exit 0
}

inside() {
    export QM_PYTHON=$1/venv/bin/python
    [ -z "${2:-}" ] || export PYTHONPATH=$2${PYTHONPATH:+:$PYTHONPATH}
}

beside() {
    if [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
        check "$@"
        return
    fi
    CUDA_VISIBLE_DEVICES='' "$QM_PYTHON" "$QM_SCRIPTS/$1" "${@:2}" >"$STAGE/.beside" 2>&1 &
    QM_BESIDE=$!
}

fetch() {
    # huggingface_hub tells its progress in a log too (`snakemake live` reads it), once a second.
    TQDM_POSITION=-1 TQDM_MININTERVAL=1 script "$@"
}

_ended() {
    local status=$?
    [ -z "$QM_WANTED" ] || _failed || true
    exec 9>&-
    rmdir "$QM_HERE" 2>/dev/null || true # where layout.clear has left it
    exit $status
}

_failed() {
    kill ${QM_MEASURING:-} ${QM_BESIDE:-} 2>/dev/null || true
    rm -rf "$STAGE" "$QM_HERE/hold" # which is still held
    printf 'FAILED  %s, after %s s. The end of %s:\n' "$OUT_NAME" "$SECONDS" "$QM_LOG"
    # Progress bars would move the cursor: a line for each state, and no escape sequences. Nor
    # other control characters, C1 in UTF-8 too: a model may have written them.
    tr '\r' '\n' <"$QM_LOG" | LC_ALL=C sed -e $'s/\033\\[[0-9;]*[A-Za-z]//g' \
        -e $'s/\302[\200-\237]//g' -e '/^ *$/d' | LC_ALL=C tr -d '\000-\010\013-\037\177' |
        tail -n 15 | sed 's/^/    /'
} >&8
