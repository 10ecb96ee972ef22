# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# The commands of a run: weaver with its launcher, `jetzoo profile` and `jetzoo evaluate`.

# The environment of this checkout, unless the user works in another one that has weaver.
find_programs() {
    if [[ -x $root/.venv/bin/weaver ]] &&
        { [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]] || ! command -v weaver >/dev/null; }; then
        PATH=$root/.venv/bin:$PATH
    fi
    weaver=$(command -v weaver || true) torchrun=$(command -v torchrun || true)
}

check_programs() {
    if [[ -z $weaver ]] || ! command -v jetzoo >/dev/null; then
        problem "weaver and jetzoo are not installed; run 'make demo' or 'pip install -e .'."
    fi
}

# The number of GPUs that PyTorch sees; nothing where there is no PyTorch to ask.
count_gpus() {
    python3 -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || true
}

# PyTorch is asked only where the driver lists a GPU: importing it takes seconds.
has_gpu() {
    [[ $(nvidia-smi -L 2>/dev/null) == "GPU "* && $(count_gpus) == [1-9]* ]]
}

choose_processes() {
    nodes=${DDP_NNODES:-1} per_node=${DDP_NGPUS:-1} node=0
    [[ "$nodes $per_node" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] ||
        die "DDP_NNODES and DDP_NGPUS must be whole numbers from 1 on."
    launcher=("${weaver:-weaver}")
    if ((nodes > 1)); then
        node=${DDP_NODE_RANK:-}
        if [[ ! $node =~ ^[0-9]+$ || ! ${DDP_RDZV:-} =~ ^[^:]+:[0-9]+$ ]] || ((node >= nodes)); then
            die "DDP_NNODES=$nodes needs DDP_NODE_RANK=0..$((nodes - 1)) and DDP_RDZV=HOST:PORT."
        fi
        launcher=("${torchrun:-torchrun}"
            --nnodes="$nodes" --nproc_per_node="$per_node"
            --rdzv_backend=c10d --rdzv_endpoint="$DDP_RDZV" --rdzv_id="${dataset:-own}-$model-$feature"
            "${launcher[@]}" --backend nccl)
    elif [[ -n ${DDP_NGPUS:-} ]]; then # one process, too: what runs is then the same
        launcher=("${torchrun:-torchrun}" --standalone --nnodes=1 --nproc_per_node="$per_node"
            "${launcher[@]}" --backend nccl)
    fi

    if given --gpus; then
        gpus=$value
    elif has_gpu; then
        gpus=0
    else
        gpus=''
    fi
    if ((${#launcher[@]} > 1)) && [[ -z $gpus ]]; then
        problem "DDP_NGPUS and DDP_NNODES are for GPUs, and there is none to use."
        gpus=0
    fi
}

# The GPUs that the user names must be there.
check_gpus() {
    local option count number wanted='' numbers
    for option in --gpus --predict-gpus; do
        if given "$option" && [[ -n $value ]]; then
            wanted+=${wanted:+,}$value
        fi
    done
    if [[ $dry_run == yes || -z $wanted ]]; then
        return
    fi
    count=$(count_gpus)
    if [[ $count == 0 ]]; then
        die "--gpus $wanted: PyTorch sees no GPU here; --gpus '' runs on the CPU."
    fi
    if [[ -n ${DDP_NGPUS:-} && -n $count ]] && ((per_node > count)); then
        die "DDP_NGPUS=$per_node: PyTorch sees $count GPUs here."
    fi
    IFS=', ' read -ra numbers <<<"$wanted"
    for number in "${numbers[@]}"; do
        if [[ -n $count ]] && ((10#$number >= count)); then
            die "--gpus $wanted: PyTorch sees $count GPUs here, numbered from 0 on."
        fi
    done
}

# Asks Python what only it can tell: whether the network can be built for the data config and has the
# option --attention, whether the files have the branches, and the number of training jets. That takes
# seconds, so what comes with jetzoo is not asked, and a dry run asks only what it needs.
check_run() {
    local words answer counts=no pattern i
    if [[ $predict == no && -z $samples ]] &&
        ! { given --samples-per-epoch --steps-per-epoch &&
            given --samples-per-epoch-val --steps-per-epoch-val; }; then
        counts=yes
    fi
    if [[ -z $attention && $counts == no ]] &&
        [[ $dry_run == yes || ($hosted == no && -n $dataset) ]]; then
        return
    fi
    words=("$network" "$data_config")
    if [[ -n $attention ]]; then
        words+=(--attention)
    fi
    for ((i = 0; i < ${#user_options[@]} - 2; i++)); do
        if is_one_of "${user_options[i]}" -o --network-option; then
            words+=(--option "${user_options[@]:i + 1:2}")
        fi
    done
    if [[ -z $dataset ]]; then
        add_words --train "${data_train[@]}"
        if has_validation; then
            add_words --val "${data_val[@]}"
        else
            words+=(--share "$training_share")
        fi
        add_words --test "${data_test[@]}"
    fi
    if answer=$(python3 "$root/scripts/check_run.py" "${words[@]}" 2>&1); then
        [[ $counts == no ]] || check_samples "${answer##*$'\n'}"
    else
        problem "${answer##*$'\n'}"
    fi
}

# Adds the files of patterns, from `$2` on, to `words` as the option `$1`.
add_words() {
    local pattern files
    words+=("$1")
    for pattern in "${@:2}"; do
        mapfile -t files < <(compgen -G "${pattern#*:}")
        words+=("${files[@]}")
    done
}

# Takes the numbers of jets to train on and to validate on. weaver drops the last batch of an epoch if
# it is not full: there must be another one.
check_samples() {
    local size=$batch kind number
    read -r samples samples_val <<<"$1"
    for kind in train validate; do
        number=$((samples / (nodes * per_node)))
        given --batch-size && size=${value//_/}
        if [[ $kind == validate ]]; then
            number=$((samples_val / per_node))
            given --batch-size-val && size=${value//_/}
        fi
        ((number >= size)) ||
            problem "A process has $number jets to $kind on, fewer than a batch of $size:" \
                "give a smaller --batch-size."
    done
}

# The option of the network file with which weaver predicts in int8, too. The jets to calibrate with
# are those of validation or, where they are a part of the training files, of training.
quantize_option() {
    local pattern patterns=("${data_train[@]}") literals=() name=$model
    if has_validation; then
        patterns=("${data_val[@]}")
    fi
    if [[ $hosted == yes ]]; then
        name=$network
    fi
    for pattern in "${patterns[@]}"; do
        literals+=("$(literal "${pattern#*:}")")
    done
    printf "{'method': '%s', 'qat': %s, 'network': %s, 'output': %s, 'calibration': [%s]}" \
        "$quantize" "$qat" "$(literal "$name")" "$(literal "$output")" \
        "$(IFS=, && echo "${literals[*]}")"
}

# A string as Python reads it.
literal() {
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\\\'}"
}

build_command() {
    command=("${launcher[@]}" "${data[@]}" "${loading[@]}" --data-config "$data_config")
    if [[ $hosted == yes ]]; then
        command+=(--network-config "$root/scripts/own_network.py"
            --network-option network_file "$(literal "$network")")
    else
        command+=(--network-config "$network")
    fi
    if [[ -n $attention ]]; then
        command+=(--network-option attention "'$attention'")
    fi
    if [[ -n $seed ]]; then
        command+=(--network-option seed "$((10#$seed))")
    fi
    if [[ -n $quantize ]]; then
        command+=(--network-option quantize "$(quantize_option)")
    fi
    if [[ $predict == yes && -n $load ]]; then
        command+=(--model-prefix "$load")
    elif [[ $predict == no ]]; then
        add_training
    fi
    command+=(--batch-size "$batch" --gpus "$gpus")
    if [[ $family == ParT && -n $gpus ]]; then
        command+=(--use-amp)
    fi
    command+=(--predict-output "$output/predict_output/pred.root" --log-file "$output/train.log"
        "${user_options[@]}")
}

# Adds the options of the training to the command.
add_training() {
    command+=("${weights[@]}" --model-prefix "$output/net")
    if [[ -n $last_epoch ]]; then
        command+=(--load-epoch "$last_epoch")
    fi
    command+=(--num-epochs "$epochs" --start-lr "$lr" --optimizer ranger)
    if [[ $family == ParT && -n $weight_decay ]]; then
        command+=(--optimizer-option weight_decay "$weight_decay")
    fi
    if [[ $pretrained != - ]]; then
        command+=(--lr-scheduler none)
    fi
    # weaver takes either samples or steps.
    given --steps-per-epoch || [[ -z $samples ]] ||
        command+=(--samples-per-epoch $((samples / (nodes * per_node))))
    given --steps-per-epoch-val || [[ -z $samples_val ]] ||
        command+=(--samples-per-epoch-val "$samples_val")
    if ((node > 0)); then
        command+=(--run-mode "train,val")
    fi
}

# The command that profiles a network as it was trained, on jets of the test set.
build_profile_command() {
    local pattern first files=() checkpoint=$output/net_best_epoch_state.pt size=$batch device=cpu
    local network=$network yaml=$data_config
    if given -m --model-prefix; then
        checkpoint=$value
        [[ $checkpoint == *.pt ]] || checkpoint+=_best_epoch_state.pt
    elif [[ $predict == yes ]]; then
        checkpoint=$load
    fi
    if given -n --network-config; then
        network=$value
    fi
    if given -c --data-config; then
        yaml=$value
    fi
    if given --batch-size; then
        size=$value
    fi
    if [[ -n $gpus ]]; then
        device=cuda:${gpus%%,*}
    fi
    for pattern in "${data_test[@]}"; do
        first=$(compgen -G "${pattern#*:}" | sort | head -n 1 || true)
        files+=("${first:-${pattern#*:}}")
    done
    if [[ $profile == default ]]; then
        profile=$output/profile
    fi
    profile_command=(jetzoo profile "$network" --checkpoint "$checkpoint"
        --data-config "$yaml" --data "${files[@]}" --batch-size "$size" --device "$device"
        --loader --out "$profile")
    if [[ $predict == no ]]; then
        profile_command+=(--train)
    fi
    if is_one_of --use-amp "${command[@]}"; then
        profile_command+=(--precision bf16)
    fi
    add_network_options
}

# Hands the network options of the training on to the profile, without those of the scripts.
add_network_options() {
    local i
    for ((i = 0; i < ${#command[@]} - 2; i++)); do
        if is_one_of "${command[i]}" -o --network-option &&
            ! is_one_of "${command[i + 1]}" network_file seed quantize; then
            profile_command+=(--network-option "${command[@]:i + 1:2}")
        fi
    done
}

# Whether the options let weaver predict the test set.
predicts() {
    if given --run-mode && [[ ",$value," != *,test,* && $predict == no ]]; then
        return 1
    fi
    ! given --io-test --print --lr-finder --export-onnx
}

evaluate_predictions() {
    local predictions=$output/predict_output/pred.root prefix=$output/net stem files
    local yaml=$data_config
    if given -m --model-prefix; then
        prefix=$value
    elif [[ $predict == yes ]]; then
        prefix=$load
    fi
    if given --predict-output; then
        predictions=$value
        if [[ $predictions != */* ]]; then
            predictions=$(dirname "$prefix")/predict_output/$predictions
        fi
    fi
    if given -c --data-config; then
        yaml=$value
    fi
    # weaver writes one file NAME_GROUP for each group of test files, if they have groups.
    printf -v stem '%q' "${predictions%.*}"
    mapfile -t files < <(compgen -G "$stem.${predictions##*.}" || true
        compgen -G "${stem}_*.${predictions##*.}")
    if ((${#files[@]})); then
        run_job jetzoo evaluate "${files[@]}" --data-config "$yaml"
        return
    fi
    echo "weaver wrote no predictions to $predictions: there is nothing to evaluate." >&2
    ! predicts
}
