# shellcheck shell=bash
# shellcheck disable=SC2154  # the settings of a data set stand in the script that sources this
#
# What the three train_*.sh share. Each of them sets what belongs to its data set (dataset,
# features, data_train, epochs, ...) and calls `train "$@"`. Nothing here changes the folder, so
# that relative paths in the options mean what they mean in the user's shell.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=env.sh
source "$root/env.sh"

# The training defaults. A new architecture is a file networks/MODEL.py and a row here.
#   family      ParT: mixed precision on GPUs, the weight decay of the data set, --attention
#   pretrained  fine-tuning starts from models/PRETRAINED_{kin,kinpid}.pt
models=(
    # model         family  lr    batch  pretrained
    "ParT           ParT    1e-3  512    -"
    "LinformerParT  ParT    1e-3  512    -"
    "ReformerParT   ParT    1e-3  512    -"
    "MambaParT      ParT    1e-3  512    -"
    "PN             PN      1e-2  512    -"
    "PFN            PFN     2e-2  4096   -"
    "PCNN           PCNN    2e-2  4096   -"
    "ParT-FineTune  ParT    1e-4  512    ParT"
    "PN-FineTune    PN      1e-3  512    ParticleNet"
)

# Files that are smaller together are read at once and kept: a small sample would otherwise come in
# crumbs. 200 MB of JetClass files are about 2 GB of padded inputs.
small=200000000

quantize_methods=(static dynamic weight-only)

demo_epochs=3 demo_samples=3200 demo_samples_val=768 demo_batch=64

usage() {
    local script=./train_$dataset.sh
    cat <<EOF
Train a tagger on $dataset with weaver, predict the test set and evaluate the predictions.

  $script [MODEL] [FEATURES] [OPTIONS]

MODEL      $(model_names)
           (default: ParT)
FEATURES   ${features[*]}
           (default: ${features[0]})

OPTIONS, after MODEL and FEATURES
  --demo             a short run: $demo_epochs epochs of $demo_samples jets, batch size $demo_batch
  --dry-run          print the exact command and stop; needs neither data nor GPU
  --gpus LIST        0, or 0,1,2,3 (DataParallel), or "" for the CPU
                     (default: the first GPU if there is one, otherwise the CPU)
  --attention NAME   attention backend; for ParT and its variants
  --load FILE.pt     start the training from these weights
  --predict          do not train: predict the test set with the weights of --load
  --quantize METHOD  predict the test set in int8, too, and compare; the int8 network goes to
                     net_int8.pt; METHOD is ${quantize_methods[*]}
  --qat              with --quantize: fine-tune the network for int8 first
  --profile [DIR]    at the end, find out where the time goes, in training and inference;
                     DIR/index.html shows it (default: profile in the output folder)
  -h, --help         print this
  Every other option goes to weaver and overrides what is set here, for example
  --num-epochs 5 --start-lr 5e-4 --network-option num_layers 4; weaver --help lists them.

ENVIRONMENT
  $(printf '%-21s' "DATADIR_$dataset") folder of the data set; get_datasets.py sets it, too
  COMMENT               ends the name of the output folder
  DDP_NGPUS=4           DistributedDataParallel: a process per GPU, which share the jets of an epoch
  DDP_NNODES=2          the same on several nodes: run the script on each of them, with
  DDP_NODE_RANK=0       its number, from 0 on (node 0 predicts and evaluates), and
  DDP_RDZV=HOST:PORT    a node that all reach, and a free port of it

OUTPUT
  training/$dataset/MODEL/FEATURES/<time><COMMENT>/ with the weights of every epoch and of
  the best one (net_*.pt), train.log, and predict_output/ (scores, metrics, ROC figure)

EXAMPLES
  $script ParT ${features[0]} --demo
  $script PN ${features[0]} --gpus 0,1 --batch-size 1024
  DDP_NGPUS=4 COMMENT=_flat $script ParT ${features[0]} --lr-scheduler none
  $script ParT ${features[0]} --predict --load training/.../net_best_epoch_state.pt
EOF
}

die() {
    printf '%s\n' "$*" >&2
    exit 2
}

# A reason why the training cannot start. A dry run tells it, and goes on.
problem() {
    if [[ $dry_run == no ]]; then
        die "$*"
    fi
    printf 'note: %s\n' "$*" >&2
}

is_one_of() {
    local wanted=$1 name
    for name in "${@:2}"; do
        if [[ $name == "$wanted" ]]; then
            return 0
        fi
    done
    return 1
}

model_names() {
    local row name pretrained names=()
    for row in "${models[@]}"; do
        read -r name _ _ _ pretrained <<<"$row"
        if [[ $pretrained == - || $fine_tuning == yes ]]; then
            names+=("$name")
        fi
    done
    echo "${names[*]}"
}

# Whether the user gave one of these options of weaver; its last value goes to $value.
given() {
    local i name found=1
    for ((i = 0; i < ${#user_options[@]}; i++)); do
        for name; do
            case ${user_options[i]} in
                "$name") value=${user_options[i + 1]:-} found=0 ;;
                "$name="*) value=${user_options[i]#*=} found=0 ;;
            esac
        done
    done
    return $found
}

parse_arguments() {
    local row names
    model=ParT feature=${features[0]} demo=no dry_run=no predict=no attention='' load='' profile=''
    quantize='' qat=False
    user_options=()
    if (($#)) && [[ $1 != -* ]]; then
        model=$1
        shift
    fi
    if (($#)) && [[ $1 != -* ]]; then
        feature=$1
        shift
    fi
    while (($#)); do
        case $1 in
            --attention=* | --load=* | --profile=* | --quantize=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                ;;
            --attention | --load | --quantize)
                (($# > 1)) || die "$1 needs a value; -h explains."
                ;;
        esac
        case $1 in
            -h | --help)
                usage
                exit
                ;;
            --demo) demo=yes ;;
            --dry-run) dry_run=yes ;;
            --attention)
                attention=$2
                shift
                ;;
            --load)
                load=$2
                shift
                ;;
            --quantize)
                quantize=$2
                shift
                ;;
            --qat) qat=True ;;
            --profile)
                profile=default
                if (($# > 1)) && [[ $2 != -* ]]; then
                    [[ -n $2 ]] || die "--profile= needs a folder; -h explains."
                    profile=$2
                    shift
                fi
                ;;
            -*) user_options+=("$1") ;;
            *)
                ((${#user_options[@]})) ||
                    die "'$1' is out of place: MODEL and FEATURES come before the options."
                user_options+=("$1")
                ;;
        esac
        shift
    done

    read -ra names <<<"$(model_names)"
    is_one_of "$model" "${names[@]}" ||
        die "There is no model '$model' for $dataset; the models are ${names[*]}."
    is_one_of "$feature" "${features[@]}" ||
        die "There is no feature set '$feature' for $dataset; the feature sets are ${features[*]}."
    for row in "${models[@]}"; do
        if [[ ${row%% *} == "$model" ]]; then
            read -r _ family lr batch pretrained <<<"$row"
        fi
    done
    if [[ -n $attention && $family != ParT ]]; then
        die "--attention is for ParT and its variants, not for $model."
    fi
    if [[ -n $quantize ]]; then
        is_one_of "$quantize" "${quantize_methods[@]}" ||
            die "There is no --quantize '$quantize'; the methods are ${quantize_methods[*]}."
    elif [[ $qat == True ]]; then
        die "--qat goes with --quantize; -h explains."
    fi
    if given --predict; then
        predict=yes
        [[ -n $load ]] || given -m --model-prefix ||
            die "--predict needs the weights to predict with: --load FILE.pt."
    fi
    if [[ -n $load && ($load != *.pt || ! -f $load) ]]; then
        problem "--load $load is not an existing .pt file."
    fi
}

# The environment of this checkout, unless the user works in another one that has weaver.
find_weaver() {
    if [[ -x $root/.venv/bin/weaver ]] &&
        { [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]] || ! command -v weaver >/dev/null; }; then
        PATH=$root/.venv/bin:$PATH
    fi
    weaver=$(command -v weaver || true) torchrun=$(command -v torchrun || true)
    if [[ -z $weaver ]] || ! command -v jetzoo >/dev/null; then
        problem "weaver and jetzoo are not installed; run 'make demo' or 'pip install -e .'."
    fi
}

# PyTorch is asked only where the driver lists a GPU: importing it takes seconds.
has_gpu() {
    [[ $(nvidia-smi -L 2>/dev/null) == "GPU "* ]] &&
        python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
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
            --rdzv_backend=c10d --rdzv_endpoint="$DDP_RDZV" --rdzv_id="$dataset-$model-$feature"
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

# Adds the files of a split, `data_SPLIT` being patterns `[GROUP:]PATTERN`, to the array `data`.
# `fewest` becomes the number of files of its smallest group, `bytes` grows by the size of all, and
# patterns without a file are added to `absent`.
add_files() {
    local -n patterns=data_$1
    local pattern path size files paths=()
    fewest=
    for pattern in "${patterns[@]}"; do
        path=$datadir/${pattern#*:}
        mapfile -t files < <(compgen -G "$path")
        if ((${#files[@]} == 0)); then
            absent+=("$path")
        else
            while read -r size; do
                bytes=$((bytes + size))
            done < <(stat -Lc %s -- "${files[@]}")
        fi
        if [[ -z $fewest ]] || ((${#files[@]} < fewest)); then
            fewest=${#files[@]}
        fi
        if [[ $pattern == *:* ]]; then
            path=${pattern%%:*}:$path
        fi
        paths+=("$path")
    done
    data+=("--data-$1" "${paths[@]}")
}

# weaver hands whole files to the processes of a node: each of them needs `$2` of the pattern `$1`.
check_share() {
    local least=$((per_node * $2)) hint="add a validation file ${data_val[0]}"
    if ((per_node > 1)); then
        hint="use --gpus instead of DDP_NGPUS"
    fi
    if ((fewest > 0 && fewest < least)); then
        problem "This run needs at least $least files ${1#*:}, and $datadir has $fewest: $hint."
    fi
}

# What weaver reads, and how: the arrays `data` and `loading`.
choose_data() {
    local variable=DATADIR_$dataset how bytes=0 fewest=0 each=1 absent=()
    datadir=${!variable:-$root/datasets/$dataset}
    data=() loading=()
    if [[ $datadir$root == *[:*?[]* ]]; then
        problem "weaver cannot read from a folder with one of : * ? [ in its path, as in $datadir."
    fi
    if [[ $predict == no ]] && ! given -i --data-train; then
        if ! given -l --data-val; then
            if [[ -z $validation_split ]] || compgen -G "$datadir/${data_val[0]}" >/dev/null; then
                add_files val
                check_share "${data_val[0]}" 1
            else
                loading+=(--train-val-split "$validation_split")
                each=2 # weaver cannot cut the validation jets out of a single file
            fi
        fi
        add_files train
        check_share "${data_train[0]}" $each
        if ((fewest > 0 && fewest / per_node < workers)); then
            workers=$((fewest / per_node))
        fi
        if ((bytes > 0 && bytes < small)); then
            fetch_step=1 in_memory=yes
        fi
    fi
    if ! given -t --data-test; then
        add_files test
    fi
    if ((${#absent[@]})); then
        how="get it with ./get_datasets.py $dataset"
        if [[ -d $root/data/samples/$dataset ]]; then
            how+=", or generate it with ./get_datasets.py $dataset --simulate 100000,"
            how+=" or take the small sample with ./get_datasets.py $dataset --sample"
        fi
        problem "The $dataset data set is missing, there is no ${absent[0]}: $how."
    fi

    loading+=(--num-workers "$workers")
    if [[ $predict == no ]]; then
        loading+=(--fetch-step "$fetch_step")
        if [[ $in_memory == yes ]]; then
            loading+=(--in-memory)
        fi
    fi
}

choose_weights() {
    local kind=kinpid
    weights=()
    if [[ $predict == yes ]] || given --load-model-weights; then
        return
    fi
    if [[ -n $load ]]; then
        weights=(--load-model-weights "$load")
    elif [[ $pretrained != - ]]; then
        if [[ $feature == kin ]]; then
            kind=kin
        fi
        weights=(--load-model-weights "$root/models/${pretrained}_$kind.pt")
        [[ -f ${weights[1]} ]] ||
            problem "$model starts from JetClass weights, which are expected in ${weights[1]};" \
                "jetzoo models --fetch ${pretrained}_$kind gets the published ones, for --load."
    fi
}

choose_output() {
    [[ ${COMMENT:-} != *[/:]* ]] || die "COMMENT ends the name of a folder; it cannot hold / or :."
    output=$root/training/$dataset/$model/$feature/$(date +%Y%m%d-%H%M%S)${COMMENT:-}
    if ((node > 0)); then
        output+=-node$node
    fi
    if [[ $dry_run == no ]]; then
        mkdir -p "${output%/*}"
        # Two jobs may start within one second.
        mkdir "$output" 2>/dev/null || { output+=-$$ && mkdir "$output"; }
    fi
}

# The option of the network file with which weaver predicts in int8, too. The jets to calibrate with
# are those of validation or, where they are a part of the training files, of training.
quantize_option() {
    local pattern path patterns=("${data_val[@]}") literals=()
    if given -l --data-val; then
        patterns=("$value") # weaver takes several; one of them is enough
    elif ! compgen -G "$datadir/${data_val[0]#*:}" >/dev/null; then
        patterns=("${data_train[@]}")
    fi
    for pattern in "${patterns[@]}"; do
        path=${pattern#*:}
        [[ $path == /* ]] || given -l --data-val || path=$datadir/$path
        literals+=("$(literal "$path")")
    done
    printf "{'method': '%s', 'qat': %s, 'network': '%s', 'output': %s, 'calibration': [%s]}" \
        "$quantize" "$qat" "$model" "$(literal "$output")" "$(IFS=, && echo "${literals[*]}")"
}

# A string as Python reads it.
literal() {
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\\\'}"
}

build_command() {
    data_config=$root/data/$dataset/${config}_$feature.yaml
    if [[ $demo == yes ]]; then
        epochs=$demo_epochs samples=$demo_samples samples_val=$demo_samples_val batch=$demo_batch
    fi
    command=("${launcher[@]}" "${data[@]}" "${loading[@]}"
        --data-config "$data_config" --network-config "$root/networks/$model.py")
    if [[ -n $attention ]]; then
        command+=(--network-option attention "'$attention'")
    fi
    if [[ -n $quantize ]]; then
        command+=(--network-option quantize "$(quantize_option)")
    fi
    if [[ $predict == yes && -n $load ]]; then
        command+=(--model-prefix "$load")
    elif [[ $predict == no ]]; then
        command+=("${weights[@]}" --model-prefix "$output/net"
            --num-epochs "$epochs" --start-lr "$lr" --optimizer ranger)
        if [[ $family == ParT && -n $weight_decay ]]; then
            command+=(--optimizer-option weight_decay "$weight_decay")
        fi
        if [[ $pretrained != - ]]; then
            command+=(--lr-scheduler none)
        fi
        # weaver takes either samples or steps.
        given --steps-per-epoch ||
            command+=(--samples-per-epoch $((samples / (nodes * per_node))))
        given --steps-per-epoch-val ||
            command+=(--samples-per-epoch-val "$samples_val")
        if ((node > 0)); then
            command+=(--run-mode "train,val")
        fi
    fi
    command+=(--batch-size "$batch" --gpus "$gpus")
    if [[ $family == ParT && -n $gpus ]]; then
        command+=(--use-amp)
    fi
    command+=(--predict-output "$output/predict_output/pred.root" --log-file "$output/train.log"
        "${user_options[@]}")
}

# The command that profiles a network as it was trained, on jets of the test set.
build_profile_command() {
    local i path first patterns=() files=() checkpoint=$output/net_best_epoch_state.pt
    local size=$batch yaml=$data_config device=cpu
    if given -m --model-prefix; then
        checkpoint=$value
        [[ $checkpoint == *.pt ]] || checkpoint+=_best_epoch_state.pt
    elif [[ $predict == yes ]]; then
        checkpoint=$load
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
    if given -t --data-test; then
        patterns=("${value#*:}")
    else
        for path in "${data_test[@]}"; do
            patterns+=("$datadir/${path#*:}")
        done
    fi
    for path in "${patterns[@]}"; do
        first=$(compgen -G "$path" | sort | head -n 1 || true)
        files+=("${first:-$path}")
    done
    if [[ $profile == default ]]; then
        profile=$output/profile
    fi
    profile_command=(jetzoo profile "$root/networks/$model.py" --checkpoint "$checkpoint"
        --data-config "$yaml" --data "${files[@]}" --batch-size "$size" --device "$device"
        --loader --out "$profile")
    if [[ $predict == no ]]; then
        profile_command+=(--train)
    fi
    if is_one_of --use-amp "${command[@]}"; then
        profile_command+=(--precision bf16)
    fi
    for ((i = 0; i < ${#command[@]} - 2; i++)); do
        if is_one_of "${command[i]}" -o --network-option; then
            profile_command+=(--network-option "${command[@]:i + 1:2}")
        fi
    done
}

evaluate_predictions() {
    local predictions=$output/predict_output/pred.root prefix=$output/net files
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
        data_config=$value
    fi
    # weaver writes one file for each group of test files, if they have groups.
    mapfile -t files < <(compgen -G "${predictions%.*}*.${predictions##*.}")
    if ((${#files[@]} == 0)); then
        echo "weaver wrote no predictions to $predictions: there is nothing to evaluate." >&2
        return
    fi
    jetzoo evaluate "${files[@]}" --data-config "$data_config"
}

train() {
    local line profile_line=''
    parse_arguments "$@"
    find_weaver
    choose_processes
    choose_data
    choose_weights
    choose_output
    build_command
    printf -v line '%q ' "${command[@]}"
    if [[ -n $profile && $node == 0 ]]; then
        build_profile_command
        printf -v profile_line '%q ' "${profile_command[@]}"
    fi
    if [[ $dry_run == yes ]]; then
        echo "${line% }"
        [[ -z $profile_line ]] || echo "${profile_line% }"
        return
    fi
    echo "+ ${line% }" >&2
    # Idle threads that spin make a step on the CPU several times slower as soon as another program
    # wants the cores.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
    if [[ -z $gpus ]]; then
        # glibc gives large blocks back to the system at once, and each step pays for new pages: a
        # third of the time of PN on the CPU.
        export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
        export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
    fi
    "${command[@]}"
    if ((node == 0)); then
        evaluate_predictions
    fi
    if [[ -n $profile_line ]]; then
        echo "+ ${profile_line% }" >&2
        "${profile_command[@]}"
    fi
}
