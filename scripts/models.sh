# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# The training defaults of the networks, and where networks, data configs and pretrained weights lie.
#
# A new architecture is a file networks/MODEL.py and a row here; without a row it is trained with
# the defaults of read_model.
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

# The folders with networks/ and data/: those of $JETZOO_PATH, then the checkout.
find_folders() {
    local folder
    folders=()
    while IFS= read -r -d : folder; do
        if [[ -n $folder ]]; then
            folders+=("${folder/#\~\//$HOME/}")
        fi
    done <<<"${JETZOO_PATH:-}:"
    folders+=("$root")
}

# The path of each network, in `networks`, and the models of this data set, in `model_names`: the
# rows of the table, then the others by name.
find_networks() {
    local LC_ALL=C folder path name row pretrained
    declare -gA networks=()
    model_names=()
    for folder in "${folders[@]}"; do
        for path in "$folder"/networks/*.py; do
            name=${path##*/} name=${name%.py}
            if [[ -f $path && $name != _* && -z ${networks[$name]:-} ]]; then
                networks[$name]=$path
            fi
        done
    done
    for row in "${models[@]}"; do
        read -r name _ _ _ pretrained <<<"$row"
        if [[ $pretrained != - && $fine_tuning == no ]]; then
            unset "networks[$name]"
        elif [[ -n ${networks[$name]:-} ]]; then
            model_names+=("$name")
        fi
    done
    while IFS= read -r name; do
        if [[ -n $name ]] && ! is_one_of "$name" "${model_names[@]}"; then
            model_names+=("$name")
        fi
    done < <(printf '%s\n' "${!networks[@]}" | sort)
}

# The path of the data config of each feature set, in `data_configs`, and the names of the feature
# sets, in `features`: the default one, then the others by name.
find_features() {
    local LC_ALL=C folder path name
    declare -gA data_configs=()
    features=("$default_feature")
    for folder in "${folders[@]}"; do
        for path in "$folder/data/$dataset/${config}"_*.yaml; do
            name=${path##*/"${config}"_} name=${name%.yaml}
            # weaver writes files NAME.<checksum>.auto.yaml beside a data config.
            if [[ -f $path && $name != *.* && -z ${data_configs[$name]:-} ]]; then
                data_configs[$name]=$path
            fi
        done
    done
    while IFS= read -r name; do
        if [[ -n $name && $name != "$default_feature" ]]; then
            features+=("$name")
        fi
    done < <(printf '%s\n' "${!data_configs[@]}" | sort)
}

# Sets the training defaults of `model`.
read_model() {
    local row
    family=- lr=1e-3 batch=512 pretrained=-
    for row in "${models[@]}"; do
        if [[ ${row%% *} == "$model" ]]; then
            read -r _ family lr batch pretrained <<<"$row"
        fi
    done
}

# The weights that the training starts from, as options of weaver, in the array `weights`.
choose_weights() {
    local kind=kinpid
    weights=()
    if [[ -n $load ]]; then
        check_weights "--load" "$load"
    fi
    if given --load-model-weights; then
        check_weights "--load-model-weights" "${value%%:*}"
        return
    fi
    if [[ $predict == yes || $resume != no ]]; then
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

# Whether `$2`, the value of the option `$1`, is a file that PyTorch wrote.
check_weights() {
    if [[ $2 == *:* ]]; then
        die "$1 $2 has a colon in its path, which weaver cannot take."
    elif [[ $2 != *.pt || ! -f $2 ]]; then
        problem "$1 $2 is not an existing .pt file."
    elif [[ ! -r $2 ]]; then
        problem "$1 $2 cannot be read: permission denied."
    elif ! starts_with "$2" $'PK\x03\x04' && ! starts_with "$2" $'\x80'; then
        problem "$1 $2 is not a file of weights that PyTorch wrote."
    elif starts_with "$2" PK && ! is_whole "$2"; then
        problem "$1 $2 is cut: its end is missing."
    fi
}
