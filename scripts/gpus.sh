# Which GPUs a step may use. rules/common.smk puts this file before each shell block, after step.sh.
#
#   gpus N     waits until N of the visible GPUs are free, takes them until the step ends, and shows
#              only them to the commands that follow. 0: shows none, so a CPU step never uses a GPU.
#
# The visible GPUs are those of CUDA_VISIBLE_DEVICES if a scheduler or the user has set it, else
# all. Two steps of one user on one machine never get the same GPU, whatever --resources says.

gpus() {
    local want=$1 device id fd
    local home=/tmp/quantmill-gpus-$UID
    local -a visible taken held
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
    while true; do
        taken=() held=()
        for device in "${visible[@]}"; do
            id=${device#* } device=${device%% *}
            exec {fd}>>"$home/$id"
            if flock --nonblock "$fd"; then
                taken+=("$device") held+=("$fd")
                [ "${#taken[@]}" -lt "$want" ] || break 2
            else
                exec {fd}>&-
            fi
        done
        for fd in "${held[@]}"; do exec {fd}>&-; done
        sleep 1
    done
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${taken[*]}")
    export CUDA_VISIBLE_DEVICES
}

# Lines of "DEVICE ID". DEVICE: as CUDA_VISIBLE_DEVICES names it. ID: the GPU's UUID if it is known.
_visible_gpus() {
    local all device id
    all=$(nvidia-smi --query-gpu=index,uuid --format=csv,noheader 2>/dev/null | tr -d ,) || all=
    if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
        [ -z "$all" ] || echo "$all"
        return
    fi
    for device in ${CUDA_VISIBLE_DEVICES//,/ }; do
        id=$(awk -v device="$device" '$1 == device { print $2 }' <<<"$all")
        echo "$device ${id:-$device}"
    done
}
