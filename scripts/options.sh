# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# The options of the training scripts: help, parsing, checks. A misuse is one sentence and exit
# code 2, before anything is created.

demo_epochs=3 demo_samples=3200 demo_samples_val=768 demo_batch=64

usage() {
    local methods
    methods=$(jetzoo_names methods)
    if [[ -n $dataset ]]; then
        cat <<END
Train a tagger on $dataset with weaver, predict the test set and evaluate the predictions.

  $script [MODEL] [FEATURES] [OPTIONS]

MODEL      ${model_names[*]}
           (default: ParT), or the path of a network file
FEATURES   ${features[*]}
           (default: $default_feature), or the path of a data config

OPTIONS, after MODEL and FEATURES
END
    else
        cat <<END
Train a tagger on jets of your own with weaver, predict the test set and evaluate the predictions.

  $script NETWORK CONFIG --data-train FILES --data-test FILES [OPTIONS]

NETWORK    ${model_names[*]},
           or the path of a network file
CONFIG     the path of a data config, or a name that 'jetzoo list data' shows

OPTIONS, after NETWORK and CONFIG
  --data-train FILES, --data-val FILES, --data-test FILES
                     .root, .parquet or .h5 files; patterns in quotes, each [GROUP:]PATTERN
                     (default of --data-val: a fifth of the jets of each training file)
  --samples-per-epoch N
                     (default: the number of jets in the training files, before the selection)
  --regression-mode  train on the numbers of 'labels: custom' instead of classes
END
    fi
    cat <<END
  --demo             a short run: $demo_epochs epochs of $demo_samples jets, batch size $demo_batch
  --dry-run          print the exact command and stop; needs neither data nor GPU
  --gpus LIST        0, or 0,1,2,3 (DataParallel), or "" for the CPU
                     (default: the first GPU if there is one, otherwise the CPU)
  --seed N           of the initial weights, the order of the jets and everything random
  --attention NAME   attention backend; for networks with the option, as ParT and its variants
  --load FILE.pt     start the training from these weights
  --resume [DIR]     continue a stopped training after its last whole epoch; repeat its other
                     options (DIR: its output folder; default: the newest of $arguments)
  --predict          do not train: predict the test set with the weights of --load
  --quantize METHOD  predict the test set in int8, too, and compare; the int8 network goes to
                     net_int8.pt${methods:+; METHOD is $methods}
  --qat              with --quantize: fine-tune the network for int8 first
  --profile [DIR]    at the end, find out where the time goes, in training and inference;
                     DIR/index.html shows it (default: profile in the output folder)
  -h, --help         print this
  Every other option goes to weaver and overrides what is set here, for example
  --num-epochs 5 --start-lr 5e-4 --network-option num_layers 4; weaver --help lists them.

ENVIRONMENT
END
    [[ -z $dataset ]] ||
        printf '  %-21s %s\n' "DATADIR_$dataset" "folder of the data set; get_datasets.py sets it, too"
    cat <<END
  JETZOO_PATH           folders with networks/ and data/ of your own, separated by colons
  COMMENT               ends the name of the output folder
  DDP_NGPUS=4           DistributedDataParallel: a process per GPU, which share the jets of an epoch
  DDP_NNODES=2          the same on several nodes: run the script on each of them, with
  DDP_NODE_RANK=0       its number, from 0 on (node 0 predicts and evaluates), and
  DDP_RDZV=HOST:PORT    a node that all reach, and a free port of it

OUTPUT
  training/${dataset:-own}/${arguments/ and //}/<time><COMMENT>/ with the weights of every epoch and of
  the best one (net_*.pt), train.log, and predict_output/ (scores, metrics, ROC figure)

EXAMPLES
END
    if [[ -n $dataset ]]; then
        cat <<END
  $script ParT $default_feature --demo
  $script PN $default_feature --gpus 0,1 --batch-size 1024
  $script mine/MyNet.py $default_feature --attention sdpa
  DDP_NGPUS=4 COMMENT=_flat $script ParT $default_feature --lr-scheduler none
  $script ParT $default_feature --predict --load training/.../net_best_epoch_state.pt
END
    else
        cat <<END
  $script ParT my.yaml --data-train 'train_*.root' --data-test 'test_*.root' --demo
  $script mine/MyNet.py my.yaml --data-train 'b:b/*.root' 'qcd:qcd/*.root' \\
      --data-val 'val/*.root' --data-test 'test/*.root' --gpus 0
  DDP_NGPUS=4 $script ParT my.yaml --data-train 'train_*.root' --data-test 'test_*.root'
  $script ParT my.yaml --data-test 'test_*.root' --predict --load net_best_epoch_state.pt
END
    fi
}

die() {
    printf '%s\n' "$*" >&2
    exit 2
}

# A reason why the training cannot start. A dry run prints it and goes on.
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

# The names in a table of jetzoo, in one line; nothing where jetzoo is not installed.
jetzoo_names() {
    local names
    names=$(jetzoo list "$1" 2>/dev/null) || return 0
    echo "${names//$'\n'/ }"
}

# Whether the user gave one of these options of weaver: its last value goes to $value, all that
# follow it to the array `values`.
given() {
    local i j name found=1 count=${#user_options[@]}
    for ((i = 0; i < count; i++)); do
        for name; do
            case ${user_options[i]} in
                "$name")
                    value=${user_options[i + 1]:-} values=() found=0
                    for ((j = i + 1; j < count; j++)); do
                        [[ ${user_options[j]} != -* ]] || break
                        values+=("${user_options[j]}")
                    done
                    ;;
                "$name="*) value=${user_options[i]#*=} values=("${user_options[i]#*=}") found=0 ;;
            esac
        done
    done
    return $found
}

parse_arguments() {
    model=ParT feature=$default_feature demo=no dry_run=no predict=no attention='' load='' profile=''
    quantize='' qat=False seed='' resume=no
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
            --attention=* | --load=* | --profile=* | --quantize=* | --resume=* | --seed=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                [[ -n $2 ]] || die "$1= needs a value; -h explains."
                ;;
            --attention | --load | --quantize | --seed)
                [[ -n ${2:-} ]] || die "$1 needs a value; -h explains."
                ;;
        esac
        case $1 in
            -h | --help)
                usage
                exit
                ;;
            --demo) demo=yes ;;
            --dry-run) dry_run=yes ;;
            --qat) qat=True ;;
            --attention | --load | --quantize | --seed)
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --profile | --resume)
                printf -v "${1#--}" default
                if (($# > 1)) && [[ $2 != -* ]]; then
                    printf -v "${1#--}" '%s' "$2"
                    shift
                fi
                ;;
            -*) user_options+=("$1") ;;
            *)
                ((${#user_options[@]})) ||
                    die "'$1' is out of place: $arguments come before the options."
                user_options+=("$1")
                ;;
        esac
        shift
    done
    if given --predict; then
        predict=yes
    fi
}

# What the user chose, against the lists, and against each other.
check_arguments() {
    local names
    if [[ -n $attention ]]; then
        read -ra names <<<"$(jetzoo_names backends)"
        ((${#names[@]} == 0)) || is_one_of "$attention" "${names[@]}" ||
            die "There is no --attention '$attention'; the backends are ${names[*]}."
    fi
    if [[ -n $quantize ]]; then
        read -ra names <<<"$(jetzoo_names methods)"
        ((${#names[@]} == 0)) || is_one_of "$quantize" "${names[@]}" ||
            die "There is no --quantize '$quantize'; the methods are ${names[*]}."
    elif [[ $qat == True ]]; then
        die "--qat goes with --quantize; -h explains."
    fi
    if [[ -n $seed && ! $seed =~ ^[0-9]{1,10}$ ]] || ((10#${seed:-0} > 4294967295)); then
        die "--seed needs a whole number from 0 to 4294967295, not ${seed@Q}."
    fi
    if [[ $predict == yes && -z $load ]] && ! given -m --model-prefix; then
        die "--predict needs the weights to predict with: --load FILE.pt."
    fi
    if [[ $resume != no ]]; then
        [[ $predict == no ]] || die "--resume continues a training; it does not go with --predict."
        if [[ -n $load ]] || given --load-model-weights -m --model-prefix --load-epoch; then
            die "--resume takes the weights from its folder; it does not go with --load," \
                "--load-model-weights, --model-prefix or --load-epoch."
        fi
    elif given --load-epoch && ! given -m --model-prefix; then
        die "--load-epoch needs the --model-prefix of the old training; --resume finds both."
    fi
}

# Values of weaver's options that weaver would answer with a traceback.
check_weaver_options() {
    local name real='^\+?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?$' nonzero='^[^e]*[1-9]'
    for name in num-epochs batch-size batch-size-val batch-size-test steps-per-epoch \
        samples-per-epoch data-split-num data-split-val prefetch-factor; do
        check_number "--$name" "a whole number from 1 on" '^\+?0*[1-9][0-9]*$'
    done
    for name in num-workers load-epoch; do
        check_number "--$name" "a whole number from 0 on" '^\+?[0-9]+$'
    done
    for name in steps-per-epoch-val samples-per-epoch-val; do # a negative one is everything
        check_number "--$name" "a whole number other than 0" '^[-+]?0*[1-9][0-9]*$'
    done
    check_number --start-lr "a positive number" "$real" "$nonzero"
    check_number --warmup-steps "a number from 0 on" "$real"
    for name in fetch-step fetch-step-val; do # all at once, if not positive
        check_number "--$name" "a number" "${real/\\+/[-+]}"
    done
    for name in data-fraction data-fraction-val file-fraction; do
        check_number "--$name" "a number above 0, at most 1" \
            '^\+?(0?\.[0-9]+|1\.?0*|[0-9](\.[0-9]*)?e-0*[1-9][0-9]*)$' "$nonzero"
    done
    check_number --train-val-split "a number between 0 and 1" '^\+?0?\.[0-9]+$' "$nonzero"
    if given --fetch-by-files && { ! given --fetch-step || [[ ! $value =~ ^\+?0*[1-9] ]]; }; then
        die "--fetch-by-files needs the number of files to read at once: --fetch-step N."
    fi
    for name in gpus predict-gpus; do
        check_number "--$name" "the numbers of GPUs, such as 0 or 0,1" '^([0-9]+(, *[0-9]+)*)?$'
    done
    if given --run-mode && [[ ! $value =~ ^(train|val|test)(,(train|val|test))*$ ]]; then
        die "--run-mode needs some of train, val and test, such as train,val, not ${value@Q}."
    fi
    # weaver has these four under any case, the others are those of PyTorch, which is slow to ask.
    if given --optimizer && [[ ! ${value,,} =~ ^(ranger|adam|adamw|radam|)$ ]]; then
        python3 -c 'import sys, torch; issubclass(getattr(torch.optim, sys.argv[1]),
            torch.optim.Optimizer)' "$value" 2>/dev/null || die "There is no --optimizer ${value@Q}."
    fi
    check_literals
    check_paths
}

# The value of the option `$1`, if given, must match all of the patterns from `$3` on; `$2` says what
# it must be. Python takes underscores in numbers and a capital E, too.
check_number() {
    local pattern number
    given "$1" || return 0
    [[ -n $value ]] || ((${#values[@]})) || die "$1 needs a value; -h explains."
    number=${value//_/} number=${number//E/e}
    for pattern in "${@:3}"; do
        [[ $number =~ $pattern ]] || die "$1 needs $2, not ${value@Q}."
    done
}

# weaver reads the values of --network-option and the like as Python literals.
check_literals() {
    local i name literal
    for ((i = 0; i < ${#user_options[@]}; i++)); do
        case ${user_options[i]} in
            -o | --network-option | -p | --optimizer-option | --compiler-option)
                name=${user_options[i + 1]:-} literal=${user_options[i + 2]-}
                ((i + 2 < ${#user_options[@]})) ||
                    die "${user_options[i]} needs a name and a value, such as num_layers 4."
                # For a number or a word no interpreter need be asked.
                [[ ! $literal =~ ^(-?[0-9.]+|True|False|None|\'[A-Za-z0-9_-]*\')$ ]] || continue
                python3 -c 'import ast, sys; ast.literal_eval(sys.argv[1])' "$literal" 2>/dev/null ||
                    die "${user_options[i]} $name needs a Python value, and ${literal@Q} is none;" \
                        "a word is written with two pairs of quotes: \"'word'\"."
                ;;
        esac
    done
}

check_paths() {
    local name path
    for path in "$root" "$load" "$profile" "$resume" "${JETZOO_PATH:-}"; do
        check_path "$path"
    done
    for name in -c --data-config --data-config-val --data-config-test -n --network-config; do
        if given "$name"; then
            check_path "$value"
            [[ -f $value && -r $value ]] || die "$name ${value@Q} is not a file that can be read."
        fi
    done
    if given --load-epoch && name=$value && given -m --model-prefix && [[ $value != *.pt ]]; then
        value+=_epoch-$((10#${name#+}))_state.pt
        [[ -f $value ]] || die "--load-epoch $name: there is no file $value."
    fi
    for name in -m --model-prefix --load-model-weights --predict-output --log-file --export-onnx \
        -i --data-train -l --data-val -t --data-test; do
        if given "$name"; then
            for path in "$value" "${values[@]}"; do
                check_path "$path"
            done
        fi
    done
}

# weaver and the patterns of files take a backslash for something else, and a name that is spread
# over two lines is read as two.
check_path() {
    if [[ $1 == *[[:cntrl:]\\]* ]]; then
        die "A path with a backslash or a line break cannot be used: ${1@Q}."
    fi
}
