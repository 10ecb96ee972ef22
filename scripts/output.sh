# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# The output folder of a run: a new one, or with --resume that of a stopped training.

# Sets `output` and, with --resume, `last_epoch`; creates nothing.
choose_output() {
    local LC_ALL=C parent=$root/training/${dataset:-own}/$model/$feature comment=${COMMENT:-}
    if [[ $comment == *[][/:*?{}\\]* || $comment == *[[:cntrl:]]* ]]; then
        die "COMMENT ends the name of a folder; it cannot hold one of / : * ? [ ] { } \\" \
            "or a line break."
    fi
    if ((${#comment} > 200)); then
        die "COMMENT ends the name of a folder; it can have 200 bytes at most."
    fi
    output=$parent/$(date +%Y%m%d-%H%M%S)$comment
    if ((node > 0)); then
        output+=-node$node
    fi
    last_epoch=
    if [[ $resume != no ]]; then
        find_training "$parent"
        if ((node == 0)); then
            output=$resume
        fi
    fi
}

# The training to resume: its folder becomes `resume`, its last whole epoch `last_epoch`.
find_training() {
    local folder found='' candidates=("$resume")
    if [[ $resume == default ]]; then
        candidates=("$1"/*/) # their names start with the time
    elif [[ ! -d $resume ]]; then
        die "--resume $resume is not a folder."
    fi
    for folder in "${candidates[@]}"; do
        folder=${folder%/}
        if [[ $resume != default || ! $folder =~ -node[0-9]+$ ]] && find_last_epoch "$folder"; then
            found=$folder
        fi
    done
    if [[ -z $found ]]; then
        [[ $resume != default ]] || resume=$1
        die "There is no training to resume in $resume: no epoch is whole."
    fi
    resume=$found
}

# The last whole epoch goes to `last_epoch`: that of which all files are whole. The third of them is
# written last, after the validation; runs of older versions have two.
find_last_epoch() {
    local path epoch kind last=-1 kinds=(optimizer)
    if compgen -G "$(printf '%q' "$1")/net_epoch-*_resume.pt" >/dev/null; then
        kinds+=(resume)
    fi
    for path in "$1"/net_epoch-*_state.pt; do
        epoch=${path##*/net_epoch-} epoch=${epoch%_state.pt}
        if [[ ! $epoch =~ ^[0-9]+$ ]] || ((epoch <= last)) || ! is_whole "$path"; then
            continue
        fi
        for kind in "${kinds[@]}"; do
            is_whole "${path%_state.pt}_$kind.pt" || continue 2
        done
        last=$epoch
    done
    if ((last < 0)); then
        return 1
    fi
    last_epoch=$last
}

# PyTorch writes zip files, whose last 22 bytes are a record of its own: a file that was cut lacks it.
is_whole() {
    [[ -s $1 ]] && starts_with <(tail -c 22 -- "$1") $'PK\x05\x06'
}

make_output() {
    local epoch=net_epoch-$last_epoch kind
    if [[ $resume == no || $node != 0 ]]; then
        # Two jobs may start within one second.
        { mkdir -p "${output%/*}" && { mkdir "$output" || { output+=-$$ && mkdir "$output"; }; }; } \
            2>/dev/null || die "The output folder $output cannot be made."
    elif [[ ! -w $output ]]; then
        die "The output folder $output cannot be written to."
    fi
    if [[ $resume != no && $node != 0 ]]; then
        # Every node writes to a folder of its own, and starts from the epoch of node 0.
        for kind in state optimizer resume; do
            if [[ $kind != resume || -f $resume/${epoch}_$kind.pt ]]; then
                cp -- "$resume/${epoch}_$kind.pt" "$output/"
            fi
        done
    fi
}
