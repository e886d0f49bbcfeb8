# Which GPUs a step may use. rules/common.smk puts this file before each shell block, after step.sh.
#
#   gpus N MB    waits until N of the visible GPUs have MB MiB free (of all N together; without MB
#                all that they have), takes so much of them until the step ends, and shows only them
#                to the commands that follow. N = 0: shows none, so a CPU step never uses a GPU.
#                N = all: all that are visible, if there are any.
#
# The visible GPUs are those of CUDA_VISIBLE_DEVICES if a scheduler or the user has set it, else
# all. The steps of one user on one machine share GPUs by this account, whatever --resources says.
# A GPU whose memory nvidia-smi does not tell is taken whole; so is one that is too small for the
# step, which then has all of it.

gpus() {
    local want=$1 need=${2:-} device id total gate fd
    local home=/tmp/quantmill-gpus-$UID
    local -a visible taken
    [ "$want" != all ] || want=$(_visible_gpus | wc -l)
    if [ "$want" = 0 ]; then
        export CUDA_VISIBLE_DEVICES=
        return
    fi
    mapfile -t visible < <(_visible_gpus)
    if [ "${#visible[@]}" -lt "$want" ]; then
        echo "this step needs $want GPU(s), and ${#visible[@]} can be seen here" \
            "(CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset})"
        exit 1
    fi
    mkdir -p -m 700 "$home"
    exec {gate}>>"$home/gate"
    while true; do
        flock "$gate"
        taken=()
        for device in "${visible[@]}"; do
            read -r device id total <<<"$device"
            if _has_free "$home/$id" "$total" $((${need:-0} / want)); then
                taken+=("$device $id")
                [ "${#taken[@]}" -lt "$want" ] || break 2
            fi
        done
        flock --unlock "$gate"
        sleep 1
    done
    # What a step has taken is a file, which it holds until its last process has ended.
    for device in "${taken[@]}"; do
        id=${device#* }
        mkdir -p "$home/$id"
        exec {fd}>>"$home/$id/$BASHPID"
        flock "$fd"
        echo "${need:+$((need / want))}" >>"$home/$id/$BASHPID"
    done
    exec {gate}>&-
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${taken[*]%% *}")
    export CUDA_VISIBLE_DEVICES
}

# _has_free DIRECTORY TOTAL MB: whether MB of a GPU's TOTAL MiB are not taken. DIRECTORY: that of
# what steps have taken of it; what no step holds any more is removed.
_has_free() {
    local file fd mb used=0 holders=0
    for file in "$1"/*; do
        [ -e "$file" ] || continue
        exec {fd}>>"$file"
        if flock --nonblock "$fd"; then
            rm -f "$file"
        else
            mb=$(cat "$file")
            used=$((used + ${mb:-${2:-0}})) holders=$((holders + 1))
        fi
        exec {fd}>&-
    done
    [ $holders = 0 ] || { [ -n "$2" ] && [ "$3" -gt 0 ] && [ $((used + $3)) -le "$2" ]; }
}

# Lines of "DEVICE ID MB". DEVICE: as CUDA_VISIBLE_DEVICES names it. ID: the GPU's UUID if it is
# known. MB: MiB of its memory; nothing if it is not known.
_visible_gpus() {
    local all device found index uuid mb
    all=$(nvidia-smi --query-gpu=index,uuid,memory.total --format=csv,noheader,nounits \
        2>/dev/null | tr -d ,) || all=
    if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
        [ -z "$all" ] || echo "$all"
        return
    fi
    for device in ${CUDA_VISIBLE_DEVICES//,/ }; do
        found=
        while read -r index uuid mb; do
            case $device in "$index" | "$uuid") found="$uuid $mb" ;; esac
        done <<<"$all"
        echo "$device ${found:-$device}"
    done
}
